//! Seeds of the swarm that found something once, each with a sentence: `fixtures/seeds/swarm.txt`.

const KNOWN: &str = include_str!("../../../fixtures/seeds/swarm.txt");

/// Each seed and what it found.
pub fn known_seeds() -> impl Iterator<Item = (u64, &'static str)> {
    KNOWN.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (seed, found) = line.split_once(' ')?;
        Some((seed.parse().ok()?, found))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_line_is_a_seed_and_a_sentence() {
        let lines = super::KNOWN.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
        assert_eq!(super::known_seeds().count(), lines);
    }
}
