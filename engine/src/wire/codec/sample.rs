//! Arbitrary values of every message, from a seed: for round trips, golden frames and garbage.
#![allow(clippy::cast_possible_truncation)]

use bytes::Bytes;
use engine_core::ids::NodeId;
use engine_core::random::Random;
use engine_core::record::{Blocks, ExtentCopy};

/// A type whose values can be drawn.
pub(in crate::wire) trait Sample: Sized {
    /// Names of its variants, when it is an enum.
    const VARIANTS: &'static [&'static str] = &[];

    fn sample(random: &mut Random) -> Self;

    fn sample_variant(_name: &str, random: &mut Random) -> Self {
        Self::sample(random)
    }
}

pub(in crate::wire) fn pick<'a>(names: &[&'a str], random: &mut Random) -> &'a str {
    names[random.between(0, names.len() as u64 - 1) as usize]
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Sample for $type {
            fn sample(random: &mut Random) -> Self {
                random.next_u64() as $type >> random.between(0, <$type>::BITS as u64 - 1)
            }
        }
    )*};
}
integers!(u8, u16, u32, u64);

impl Sample for u128 {
    fn sample(random: &mut Random) -> Self {
        u128::from(random.next_u64()) << 64 | u128::from(random.next_u64())
    }
}

impl Sample for bool {
    fn sample(random: &mut Random) -> Self {
        random.next_u64() & 1 == 1
    }
}

impl Sample for String {
    fn sample(random: &mut Random) -> Self {
        (0..random.between(0, 12)).map(|_| ['a', '7', '.', 'ä', '€'][random.between(0, 4) as usize]).collect()
    }
}

impl<T: Sample> Sample for Option<T> {
    fn sample(random: &mut Random) -> Self {
        bool::sample(random).then(|| T::sample(random))
    }
}

impl<T: Sample> Sample for Vec<T> {
    fn sample(random: &mut Random) -> Self {
        (0..random.between(0, 3)).map(|_| T::sample(random)).collect()
    }
}

impl Sample for Result<(), String> {
    fn sample(random: &mut Random) -> Self {
        Option::<String>::sample(random).map_or(Ok(()), Err)
    }
}

impl<A: Sample, B: Sample> Sample for (A, B) {
    fn sample(random: &mut Random) -> Self {
        (A::sample(random), B::sample(random))
    }
}

impl Sample for NodeId {
    fn sample(random: &mut Random) -> Self {
        Self(u16::sample(random).max(1))
    }
}

fn blocks(count: usize, random: &mut Random) -> Blocks {
    let data: Vec<u8> = (0..count).flat_map(|_| [random.next_u64() as u8; 4096]).collect();
    let sums: Vec<u8> = (0..count * 4).map(|_| random.next_u64() as u8).collect();
    Blocks { data: Bytes::from(data), sums: Bytes::from(sums) }
}

impl Sample for Blocks {
    fn sample(random: &mut Random) -> Self {
        blocks(random.between(0, 2) as usize, random)
    }
}

impl Sample for ExtentCopy {
    fn sample(random: &mut Random) -> Self {
        let present = 1 << random.between(0, 31) | 1 << random.between(0, 31);
        Self {
            extent: Sample::sample(random),
            stamp: Sample::sample(random),
            present,
            blocks: blocks(present.count_ones() as usize, random),
        }
    }
}
