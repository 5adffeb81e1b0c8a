//! Volumes spread over zones: copies in different zones, the loss of a zone survived without a hand (R17).

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::site::{AUTHORITY_HOST, Site};
use crate::support::{alone, needs};

/// Two nodes in each of three zones, on hosts of their own.
const THREE_ZONES: [&str; 6] = ["a", "b", "c", "a", "b", "c"];
/// Longer than a lease, the silence after which members elect, and a prepare's deadline.
const LONG: Duration = Duration::from_secs(5);
/// Far longer than any failover takes on a slow machine, far shorter than waiting for a person.
const FAILOVER: Duration = Duration::from_secs(15);

fn possible(story: &str) -> bool {
    needs::root(story) && needs::programs(story, &["ip", "tc"])
}

#[test]
fn a_whole_zone_falls_silent() {
    if !possible("a_whole_zone_falls_silent") {
        return;
    }
    let _alone = alone();
    let mut site = Site::new(&THREE_ZONES);
    // Three copies and three zones: the spread is over zones unless something else is asked for.
    site.create("disk", &[]);
    let mut client = site.attach("disk");
    client.work(32);
    // First the zone of the primary, then that of a backup.
    for which in 0..2 {
        let (primary, backups) = site.members("disk");
        let members: BTreeSet<&str> = [primary, backups[0], backups[1]].map(|host| site.zone(host)).into();
        assert_eq!(members.len(), 3, "every copy in a zone of its own: {members:?}");
        let zone = site.zone([primary, backups[0]][which]).to_owned();
        let dark = site.hosts_in(&zone);
        assert_eq!(dark.len(), 2);
        site.hosts.cables(&dark, "down");
        assert!(client.work_for(LONG) < FAILOVER);
        let (next, _) = site.members("disk");
        assert_ne!(site.zone(next), zone, "somebody outside leads");
        site.hosts.cables(&dark, "up");
        site.wait_healthy();
        client.look_at_all();
    }
    site.stop();
}

/// I8: what is healthy needs no authority, and what does need one goes on by itself when it is back.
#[test]
fn the_zone_with_the_authority_is_cut_off() {
    if !possible("the_zone_with_the_authority_is_cut_off") {
        return;
    }
    let _alone = alone();
    let mut site = Site::new(&THREE_ZONES);
    site.create("spread", &[]);
    site.create("inside", &["--zone", "b", "--copies", "2"]);
    let (mut spread, mut inside) = (site.attach("spread"), site.attach("inside"));
    spread.work(32);
    inside.work(32);
    // The authority is in zone a.
    let mut dark = site.hosts_in("a");
    dark.push(AUTHORITY_HOST);
    site.hosts.cables(&dark, "down");
    let gap = inside.work_for(LONG);
    assert!(gap < Duration::from_secs(2), "a volume whose members are all there waited {gap:?} for an authority");
    site.hosts.cables(&dark, "up");
    // Left without a member and without an authority it had to wait; nobody has to do anything about it.
    assert!(spread.work(32) < FAILOVER);
    site.wait_healthy();
    spread.look_at_all();
    inside.look_at_all();
    site.stop();
}
