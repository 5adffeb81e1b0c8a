//! Several hosts: every process in a network namespace of its own, configured as the README says, on two networks.
//! Cables are pulled and ways are cut, silently; the client never sees an error and never an old block (R8, I2, I7, I8).

use std::time::Duration;

use crate::support::site::{CLIENT_HOST, Site};
use crate::support::{alone, needs};

const ONE_ZONE: [&str; 3] = ["a", "a", "a"];
/// Longer than a lease, the silence after which members elect, and a prepare's deadline.
const LONG: Duration = Duration::from_secs(5);
/// Far longer than any failover takes on a slow machine, far shorter than waiting for a person.
const FAILOVER: Duration = Duration::from_secs(15);

fn possible(story: &str) -> bool {
    needs::root(story) && needs::programs(story, &["ip", "tc"])
}

#[test]
fn every_node_on_a_host_of_its_own() {
    if !possible("every_node_on_a_host_of_its_own") {
        return;
    }
    let _alone = alone();
    let mut site = Site::new(&ONE_ZONE);
    site.create("disk", &[]);
    let mut client = site.attach("disk");
    client.work(32);
    // One host after the other loses its primary network and gets it back: the small one alone is enough for it to stay.
    for host in [11, 12, 13] {
        site.hosts.cable(host, "primary", "down");
        client.work(32);
        site.hosts.cable(host, "primary", "up");
        site.wait_healthy();
    }
    client.work(32);
    client.look_at_all();
    site.stop();
}

/// I8: a member that hears and is not heard is left out, and comes back.
#[test]
fn ways_between_members_are_cut_one_way() {
    if !possible("ways_between_members_are_cut_one_way") {
        return;
    }
    let _alone = alone();
    let mut site = Site::new(&ONE_ZONE);
    site.create("disk", &[]);
    let mut client = site.attach("disk");
    client.work(32);
    let (primary, backups) = site.members("disk");
    // Its acknowledgements are lost.
    site.hosts.cut(backups[0], primary);
    assert!(client.work_for(LONG) < FAILOVER);
    site.hosts.mend(backups[0], primary);
    site.wait_healthy();
    // What it is told is lost: it hears of no primary and may not make one of itself, for the others do hear it.
    let (primary, backups) = site.members("disk");
    site.hosts.cut(primary, backups[1]);
    assert!(client.work_for(LONG) < FAILOVER);
    site.hosts.mend(primary, backups[1]);
    site.wait_healthy();
    client.look_at_all();
    site.stop();
}

/// I2, I7: the client goes on talking to a primary whom the others have replaced, until that one is told.
#[test]
fn a_primary_cut_from_its_backups_but_not_from_its_client() {
    if !possible("a_primary_cut_from_its_backups_but_not_from_its_client") {
        return;
    }
    let _alone = alone();
    let mut site = Site::new(&ONE_ZONE);
    site.create("disk", &[]);
    let mut client = site.attach("disk");
    client.work(32);
    let (primary, backups) = site.members("disk");
    let epoch = site.config("disk")["epoch"].as_u64();
    for backup in &backups {
        site.hosts.cut(primary, *backup);
        site.hosts.cut(*backup, primary);
    }
    assert!(client.work_for(LONG) < FAILOVER);
    let (next, _) = site.members("disk");
    assert_ne!(next, primary, "the others went on by themselves");
    assert!(site.config("disk")["epoch"].as_u64() > epoch);
    for backup in &backups {
        site.hosts.mend(primary, *backup);
        site.hosts.mend(*backup, primary);
    }
    site.wait_healthy();
    client.look_at_all();
    site.stop();
}

/// A slow link is not a broken one: writes take their time, nobody is left out for it.
#[test]
fn a_backup_on_a_slow_link_stays_a_member() {
    if !possible("a_backup_on_a_slow_link_stays_a_member") {
        return;
    }
    let _alone = alone();
    let mut site = Site::new(&ONE_ZONE);
    site.create("disk", &[]);
    let mut client = site.attach("disk");
    client.work(32);
    let (_, backups) = site.members("disk");
    let before = site.config("disk")["epoch"].as_u64();
    site.hosts.slow(backups[0], 2000);
    // Sixteen times 4 KiB at 2 Mbit/s take a quarter of a second at least.
    client.work(64);
    assert_eq!(site.config("disk")["epoch"].as_u64(), before, "nobody was left out");
    client.look_at_all();
    site.stop();
}

/// I7: processes are paused past every lease while the client reads what it wrote; no answer is an old one.
#[test]
fn paused_members_give_no_stale_read() {
    if !possible("paused_members_give_no_stale_read") {
        return;
    }
    let _alone = alone();
    let mut site = Site::new(&ONE_ZONE);
    site.create("disk", &[]);
    let mut client = site.attach("disk");
    client.work(32);
    let (primary, backups) = site.members("disk");
    for host in [primary, backups[0]] {
        site.signal(host, libc::SIGSTOP);
        assert!(client.work_for(LONG) < FAILOVER);
        site.signal(host, libc::SIGCONT);
        client.work(64);
        site.wait_healthy();
    }
    client.look_at_all();
    site.stop();
}

/// The host the client is on loses both its networks for a moment: nothing is lost, nothing has to be done by hand.
#[test]
fn the_clients_own_cables_are_pulled() {
    if !possible("the_clients_own_cables_are_pulled") {
        return;
    }
    let _alone = alone();
    let mut site = Site::new(&ONE_ZONE);
    site.create("disk", &[]);
    let mut client = site.attach("disk");
    client.work(32);
    let before = site.config("disk")["epoch"].as_u64();
    site.hosts.cables(&[CLIENT_HOST], "down");
    std::thread::sleep(Duration::from_secs(2));
    site.hosts.cables(&[CLIENT_HOST], "up");
    client.work(32);
    assert_eq!(site.config("disk")["epoch"].as_u64(), before, "the members never noticed");
    client.look_at_all();
    site.stop();
}
