//! The speed of a CPU core, for limits in MHz without Nomad's topology.

use std::num::NonZeroU64;
use std::path::Path;

/// MHz of the first core: its base frequency, else its maximum, else the current one in /proc/cpuinfo. Nomad uses the same
/// order. None if the kernel does not report it, as in some virtual machines.
pub(super) fn mhz_per_core() -> Option<NonZeroU64> {
    let cpufreq = Path::new("/sys/devices/system/cpu/cpu0/cpufreq");
    let khz = |file: &str| std::fs::read_to_string(cpufreq.join(file)).ok()?.trim().parse::<u64>().ok();
    let mhz = khz("base_frequency").or_else(|| khz("cpuinfo_max_freq")).map(|khz| khz / 1000);
    let mhz = mhz.or_else(|| from_cpuinfo(&std::fs::read_to_string("/proc/cpuinfo").ok()?));
    mhz.and_then(NonZeroU64::new)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and a negative speed is refused as 0"
)]
fn from_cpuinfo(text: &str) -> Option<u64> {
    let (_, value) = text.lines().find(|line| line.starts_with("cpu MHz"))?.split_once(':')?;
    value.trim().parse::<f64>().ok().map(|mhz| mhz.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuinfo_shows_the_speed_in_mhz() {
        assert_eq!(from_cpuinfo("processor\t: 0\ncpu MHz\t\t: 2596.994\n"), Some(2597));
        assert_eq!(from_cpuinfo("processor\t: 0\nBogoMIPS : 50\n"), None);
        assert_eq!(from_cpuinfo("cpu MHz : fast\n"), None);
    }
}
