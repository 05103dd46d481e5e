//! Machines with more than one processor. Emulated hosts have one, but for this module (`scripts/test-kvm`).

use std::thread::available_parallelism;

use crate::scenarios::Bed;

#[test]
fn a_worker_of_two_cpus_has_two_processors() {
    let here = available_parallelism().unwrap().get();
    assert!(
        here >= 2,
        "this host has {here} processor, and a machine never has more: use `scripts/test-kvm`"
    );
    let bed = Bed::new();
    let script = "echo nproc $(nproc), online $(cat /sys/devices/system/cpu/online), \
                  $(grep -c ^processor /proc/cpuinfo) in cpuinfo; exec sleep 1000";
    let reference = bed.script_image("two", script);
    bed.configure(&[
        bed.entry("two", &reference, &["resources: { memory: 256, cpus: 2, disk: 1GiB }"]),
        bed.entry("one", &reference, &["resources: { memory: 256, cpus: 1, disk: 1GiB }"]),
    ]);
    let _daemon = bed.daemon();
    bed.wait_log("two", "nproc 2, online 0-1, 2 in cpuinfo\n");
    bed.wait_log("one", "nproc 1, online 0, 1 in cpuinfo\n");
    assert_eq!(bed.status("two").unwrap().resources.cpus, 2);
}
