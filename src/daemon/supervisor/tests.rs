//! What the loop promises to whoever watches it.

use super::*;

/// Between two signs of life a turn may pass, and what the machine is slow by.
#[test]
fn the_units_leave_a_turn_its_time() {
    for unit in [
        include_str!("../../../deploy/systemd/backfilld.service"),
        include_str!("../../../deploy/systemd/backfilld@.service"),
    ] {
        let watchdog = unit.lines().find_map(|line| line.strip_prefix("WatchdogSec="));
        let watchdog = humantime::parse_duration(watchdog.expect("it is watched")).expect("a duration");
        assert!(watchdog >= TURN_TIMEOUT + Duration::from_secs(60), "{watchdog:?}");
    }
}
