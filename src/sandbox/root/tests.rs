use super::layout::{Layout, Link, Part, Tree};
use super::*;
use crate::sandbox::device::Permissions;
use crate::sandbox::volume::Propagation;

pub(super) const TASK_DIR: &str = "/data/alloc_mounts/1-web";
const CGROUP: &str = "/sys/fs/cgroup/nomad.slice/share.slice/1.web.scope";

pub(super) fn part(mode: &str, path: &str) -> Part {
    let rule: crate::sandbox::unveil::Unveil = format!("{mode}:{path}").parse().unwrap();
    Part { path: path.into(), access: rule.access, directory: !path.contains('.') && path != "/dev/null" }
}

pub(super) fn link(path: &str, target: &str) -> Link {
    Link { path: path.into(), target: target.into() }
}

pub(super) fn layout() -> Layout {
    let usr = Tree {
        path: "/usr".into(),
        parts: vec![part("rx", "/usr/bin"), part("rx", "/usr/lib"), part("rx", "/usr/local/bin")],
        ..Tree::default()
    };
    let etc = Tree {
        path: "/etc".into(),
        parts: vec![part("r", "/etc/alternatives"), part("r", "/etc/ssl/certs")],
        links: vec![link("/etc/localtime", "/usr/share/zoneinfo/UTC")],
        copies: vec!["hosts".into()],
        ..Tree::default()
    };
    let dev = Tree {
        path: "/dev".into(),
        parts: vec![part("rw", "/dev/null")],
        links: vec![link("/dev/ptmx", "pts/ptmx")],
        directories: ["/dev/pts", "/dev/shm", "/dev/mqueue"].map(PathBuf::from).into(),
        ..Tree::default()
    };
    Layout {
        trees: vec![usr, etc, dev],
        parts: vec![part("r", "/sys/devices/system/cpu"), part("rx", "/nix/store")],
        links: vec![link("/bin", "usr/bin")],
        ..Layout::default()
    }
}

pub(super) fn opened(rules: &[&str]) -> Vec<Opened> {
    let opened = |rule: &&str| {
        let (mode, path) = rule.split_once(':').unwrap();
        let Part { path, access, directory } = part(mode, path);
        Opened { path, access, directory }
    };
    rules.iter().map(opened).collect()
}

/// Of an ordinary user's task, without defaults.
pub(super) fn request() -> Request<'static> {
    Request {
        layout: None,
        task_dir: Path::new(TASK_DIR),
        cgroup: Some((Path::new("/sys/fs/cgroup"), Path::new(CGROUP))),
        unveils: &[],
        volumes: &[],
        devices: &[],
        links: &[],
        in_proc: &[],
        names: &[],
        privileged: false,
        in_namespace: false,
        work_dir: Path::new("/data/alloc_mounts/1-web/local"),
    }
}

fn assemble(layout: Option<&Layout>, unveils: &[&str], links: &[Link]) -> Assembly {
    Request { layout, unveils: &opened(unveils), links, ..request() }.assemble()
}

/// The default root with these unveils, and with directories as volumes: `r`, `rw` or `r later` (host-to-task), and the destination.
pub(super) fn with_volumes(unveils: &[&str], volumes: &[(&str, &str)]) -> Assembly {
    let volumes: Vec<_> = volumes
        .iter()
        .map(|(mode, path)| Volume {
            source: "/srv/volume".into(),
            path: path.into(),
            read_only: *mode != "rw",
            propagation: if *mode == "r later" { Propagation::HostToTask } else { Propagation::Private },
            mapped: true,
        })
        .collect();
    let opened_volumes: Vec<_> =
        volumes.iter().map(|volume| OpenedVolume { volume, directory: true }).collect();
    Request { layout: Some(&layout()), unveils: &opened(unveils), volumes: &opened_volumes, ..request() }
        .assemble()
}

pub(super) fn with(unveils: &[&str]) -> Assembly {
    assemble(Some(&layout()), unveils, &[])
}

impl Assembly {
    pub(super) fn mounted(&self, path: &str) -> Vec<&Mount> {
        self.mounts.iter().filter(|mount| mount.path == Path::new(path)).collect()
    }

    /// What the rules grant at a path and below it.
    pub(super) fn granted(&self, path: &str) -> Access {
        let above = self.rules.iter().filter(|rule| Path::new(path).starts_with(&rule.path));
        above.map(|rule| rule.access).fold(Access::NONE, Access::union)
    }

    pub(super) fn has_link(&self, path: &str) -> bool {
        self.links.iter().any(|link| link.path == Path::new(path))
    }
}

pub(super) fn access(mode: &str) -> Access {
    part(mode, "/x").access
}

#[test]
fn by_default_trees_are_taken_whole_and_few_rules_are_needed() {
    let root = with(&[]);
    assert_eq!(root.mounted("/usr")[0].source, Source::Tree("/usr".into()));
    assert_eq!(root.mounted("/usr/bin"), [] as [&Mount; 0]);
    let rules: Vec<_> =
        root.rules.iter().map(|rule| format!("{}:{}", rule.access, rule.path.display())).collect();
    assert_eq!(
        rules,
        [
            "r:/",
            &format!("rwxc:{TASK_DIR}/alloc"),
            &format!("rwxc:{TASK_DIR}/local"),
            &format!("rwxc:{TASK_DIR}/secrets"),
            &format!("rwxc:{TASK_DIR}/tmp"),
            "rw:/dev",
            "rwc:/dev/mqueue",
            "rwc:/dev/shm",
            "rx:/nix",
            "rwxc:/tmp",
            "rx:/usr",
            "rwxc:/var"
        ]
    );
}

#[test]
fn a_parent_is_mounted_before_what_lies_in_it() {
    let root = with(&["rw:/srv/a/b", "r:/srv/a", "r:/etc/app"]);
    for (number, mount) in root.mounts.iter().enumerate() {
        assert!(
            root.mounts[..number]
                .iter()
                .all(|earlier| !earlier.path.starts_with(&mount.path) || earlier.path == mount.path)
        );
    }
    assert_eq!(root.mounted("/srv/a/b").len(), 1, "its mount is writable, the one above it is not");
}

#[test]
fn the_same_with_no_more_rights_needs_no_mount_of_its_own() {
    let root = with(&["rw:/srv/a", "r:/srv/a/b", "r:/usr/lib/x", "rwc:/usr/lib/y"]);
    assert_eq!(root.mounted("/srv/a/b"), [] as [&Mount; 0]);
    assert_eq!(root.mounted("/usr/lib/x"), [] as [&Mount; 0]);
    assert_eq!(root.mounted("/usr/lib/y").len(), 1);
    assert_eq!(root.mounted("/usr")[0].source, Source::Tree("/usr".into()), "both lie in /usr/lib");
    assert_eq!(root.granted("/usr/lib/y"), access("rwxc"));
    assert_eq!(root.granted("/usr/lib/z"), access("rx"));
}

#[test]
fn the_task_writes_in_its_directories_and_not_beside_them() {
    let root = with(&[]);
    for name in ["local", "secrets", "tmp", "alloc", "local/deep"] {
        assert_eq!(root.granted(&format!("{TASK_DIR}/{name}")), access("rwxc"), "{name}");
    }
    for path in [TASK_DIR, "/data/alloc_mounts", "/"] {
        assert_eq!(root.granted(path), access("r"), "{path}");
    }
    assert_eq!(root.mounted(&format!("{TASK_DIR}/local")), [] as [&Mount; 0]);
}

#[test]
fn the_whole_host_still_gets_what_is_the_tasks_own() {
    let root = with(&["r:/data", "r:/dev", "r:/etc", "r:/nix", "r:/sys", "r:/usr", "r:/var"]);
    assert!(root.mounted("/dev/mqueue")[0].optional && root.mounted("/var/tmp")[0].optional);
    for path in ["/proc", "/tmp", "/dev/pts", TASK_DIR, "/dev/null"] {
        assert_eq!(root.mounted(path).len(), 1, "{path}");
    }
    assert_eq!(root.mounted("/usr/bin"), [] as [&Mount; 0]);
    assert_eq!(root.mounted("/sys/fs/cgroup"), [] as [&Mount; 0]);
    assert_eq!(root.granted("/usr/bin"), access("rx"));
    assert_eq!(root.granted("/etc/shadow"), access("r"));
}

#[test]
fn without_defaults_there_is_only_what_was_asked_for() {
    let root = assemble(None, &["r:/srv/www"], &[]);
    let mounts: Vec<_> = root.mounts.iter().map(|mount| mount.path.to_str().unwrap()).collect();
    let own = |name: &str| format!("{TASK_DIR}/{name}");
    assert_eq!(mounts, [TASK_DIR, &own("alloc"), &own("secrets"), "/proc", "/srv/www"]);
    assert_eq!(root.rules, [RootRule { path: "/srv".into(), access: access("r"), directory: true }]);
    assert_eq!(root.granted("/proc"), Access::NONE);
    assert_eq!(root.granted(TASK_DIR), Access::NONE);
}

#[test]
fn a_directory_of_the_root_is_granted_what_all_in_it_are_granted() {
    let root = assemble(None, &["r:/srv/a", "rw:/srv/b"], &[]);
    assert_eq!(root.granted("/srv/a"), access("r"));
    assert_eq!(root.granted("/srv/b"), access("rw"));
    assert!(root.rules.contains(&RootRule { path: "/srv".into(), access: access("r"), directory: true }));
}

#[test]
fn nothing_beside_an_unveil_is_granted_with_it() {
    let root = assemble(None, &["r:/srv", "rw:/srv/deep/below"], &[]);
    assert_eq!(root.granted("/srv/deep"), access("r"));
    let root = assemble(None, &["rw:/data/alloc_mounts/1-web/local/x"], &[]);
    assert_eq!(root.granted("/data/alloc_mounts/1-web/local"), Access::NONE);
}

#[test]
fn mounts_refuse_what_was_not_granted() {
    let root = with(&["r:/srv/a", "rw:/srv/b", "c:/srv/c", "rw:/dev/fuse"]);
    let refuse = |path: &str| root.mounted(path)[0].refuse;
    assert!(refuse("/srv/a").write && !refuse("/srv/b").write && !refuse("/srv/c").write);
    assert!(refuse("/srv/a").devices && !refuse("/dev/fuse").devices && !refuse("/dev/null").devices);
    assert!(refuse("/sys/devices/system/cpu").exec && !refuse("/nix/store").exec);
    assert!(refuse("/proc").exec && refuse("/dev/shm").exec);
    assert!(!refuse("/tmp").exec);
}

#[test]
fn links_lead_to_what_is_unveiled() {
    let links = [link("/srv/current", "releases/5"), link("/bin", "usr/bin")];
    let root = assemble(Some(&layout()), &["r:/srv/releases/5"], &links);
    assert!(root.has_link("/srv/current") && root.has_link("/bin"));
    assert!(root.directories.contains(Path::new("/srv/releases/5")));
    let root = assemble(Some(&layout()), &["r:/srv"], &[link("/srv/current", "releases/5")]);
    assert!(!root.has_link("/srv/current"), "it is there already");
}

#[test]
fn what_nomad_keeps_from_the_task_is_covered() {
    let root = with(&[]);
    let private = root.mounted(&format!("{TASK_DIR}/private"))[0];
    assert_eq!((&private.source, private.optional, private.refuse.write), (&Source::Empty, true, true));
    let at = |path: &str| root.mounts.iter().position(|mount| mount.path == Path::new(path)).unwrap();
    assert!(at(TASK_DIR) < at(&format!("{TASK_DIR}/private")));
    assert_eq!(root.granted(&format!("{TASK_DIR}/local")), access("rwxc"));
}

#[test]
fn a_mount_point_below_the_tasks_tmp_is_marked() {
    let root = with(&["r:/tmp/shared"]);
    assert_eq!(root.mounted("/tmp/shared")[0].ground, Ground::Task);
    assert!(
        root.mounts
            .iter()
            .filter(|mount| mount.path != Path::new("/tmp/shared"))
            .all(|mount| mount.ground != Ground::Task)
    );
    let root = with(&["r:/tmp"]);
    assert_eq!(root.mounted("/tmp")[0].source, Source::Unveil(0));
}

#[test]
fn a_single_file_has_a_file_to_be_mounted_on() {
    let root = with(&["r:/srv/app.conf"]);
    assert!(root.files.contains(Path::new("/srv/app.conf")));
    assert!(
        root.directories.contains(Path::new("/srv"))
            && !root.directories.contains(Path::new("/srv/app.conf"))
    );
}

#[test]
fn a_volume_is_at_its_path_and_its_source_is_not() {
    let root = with_volumes(&[], &[("rw", "/data/db"), ("r", "/opt/app")]);
    assert_eq!(root.mounted("/data/db")[0].source, Source::Volume(0));
    assert_eq!(root.mounted("/data/db")[0].ground, Ground::Own);
    assert!(!root.mounted("/data/db")[0].refuse.write && root.mounted("/opt/app")[0].refuse.write);
    assert!(root.mounted("/opt/app")[0].refuse.devices);
    assert_eq!((root.granted("/data/db"), root.granted("/opt/app")), (access("rwxc"), access("rx")));
    assert_eq!(
        root.granted("/srv/volume"),
        access("r"),
        "as on the root directory, where nothing of this name is"
    );
    assert!(
        root.directories.contains(Path::new("/opt/app")) && !root.directories.contains(Path::new("/srv"))
    );
}

#[test]
fn a_volume_replaces_what_is_at_its_path_and_below() {
    let root = with_volumes(&[], &[("rw", "/etc"), ("rw", "/tmp"), ("rw", "/var")]);
    assert_eq!(root.mounted("/etc")[0].source, Source::Volume(0));
    assert_eq!(root.mounted("/etc/ssl/certs"), [] as [&Mount; 0]);
    assert!(!root.has_link("/etc/hosts") && !root.has_link("/etc/localtime"));
    assert_eq!(
        root.mounted("/tmp").iter().map(|mount| &mount.source).collect::<Vec<_>>(),
        [&Source::Volume(1)]
    );
    assert_eq!(root.mounted("/var/tmp"), [] as [&Mount; 0]);
    assert_eq!(root.granted("/etc/ssl"), access("rwxc"));
}

#[test]
fn a_volume_in_the_tasks_own_directories_may_have_its_mount_point_made() {
    for path in [&format!("{TASK_DIR}/local/data"), &format!("{TASK_DIR}/secrets/data"), "/tmp/data"] {
        assert_eq!(with_volumes(&[], &[("rw", path)]).mounted(path)[0].ground, Ground::Task, "{path}");
    }
}

#[test]
fn a_volume_lasts_in_another_volume_and_in_an_unveil() {
    let root =
        with_volumes(&["rwc:/srv/shared"], &[("r", "/data"), ("rw", "/data/in"), ("rw", "/srv/shared/in")]);
    assert_eq!(root.mounted("/data/in")[0].ground, Ground::Lasting("/data".into()));
    assert_eq!(root.mounted("/srv/shared/in")[0].ground, Ground::Lasting("/srv/shared".into()));
    assert_eq!(root.mounted("/srv/shared")[0].ground, Ground::Own);
}

#[test]
fn the_tasks_own_files_can_be_read_whatever_is_unveiled() {
    for unveils in [&["w:/srv/drop"][..], &["x:/opt/tool"], &[]] {
        assert!(with(unveils).granted("/.task/passwd").contains(Access::READ), "{unveils:?}");
    }
}

/// The default root with this device.
fn with_device(unveils: &[&str], path: &str, permissions: Permissions) -> Assembly {
    let device = Device { source: "/dev/nvidia0".into(), path: path.into(), permissions };
    Request { layout: Some(&layout()), unveils: &opened(unveils), devices: &[device], ..request() }.assemble()
}

#[test]
fn a_device_has_a_node_of_its_own_beside_the_usual_ones() {
    let root = with_device(&[], "/dev/dri/card0", Permissions::READ_WRITE);
    let node = root.mounted("/dev/dri/card0")[0];
    assert_eq!((&node.source, &node.ground), (&Source::Device(0), &Ground::Own));
    assert!(!node.refuse.devices && !node.refuse.exec);
    assert_eq!(root.mounted("/dev/null")[0].source, Source::Part("/dev/null".into()));
    assert!(root.files.contains(Path::new("/dev/dri/card0")) && root.has_link("/dev/ptmx"));
    assert_eq!(root.granted("/dev/dri/card0"), access("rw"));
    let at = |source: &Source| root.mounts.iter().position(|mount| mount.source == *source).unwrap();
    assert!(at(&Source::DeviceNodes) < at(&Source::Device(0)));
    assert!(with(&[]).mounts.iter().all(|mount| mount.source != Source::DeviceNodes));
}

#[test]
fn a_device_takes_the_place_of_an_unveil_and_of_the_usual_one() {
    let read = Permissions { read: true, ..Permissions::default() };
    let root = with_device(&["rw:/dev/nvidia0"], "/dev/nvidia0", read);
    assert_eq!(root.mounted("/dev/nvidia0").len(), 1);
    assert_eq!(root.granted("/dev/nvidia0"), access("r"));
    let root = with_device(&[], "/dev/null", read);
    assert_eq!(root.mounted("/dev/null")[0].source, Source::Device(0));
    assert_eq!(root.mounted("/dev/null").len(), 1);
}
