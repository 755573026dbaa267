//! Whether the tests of `run` apply here.

/// Why `run` cannot create a sandbox here, so that its tests do not apply; none if it must work.
pub(crate) fn unavailable(plugin: &str) -> Option<String> {
    /// CAP_SYS_ADMIN of capabilities(7), which namespaces take.
    const SYS_ADMIN: u64 = 1 << 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    if !nix::unistd::geteuid().is_root() || u64::from_str_radix(effective, 16).unwrap() & SYS_ADMIN == 0 {
        return Some("it takes root".into());
    }
    let checked = std::process::Command::new(plugin).args(["check", "--json"]).output().unwrap();
    let found: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    found["landlock_abi"].is_null().then(|| "the kernel has no Landlock".into())
}
