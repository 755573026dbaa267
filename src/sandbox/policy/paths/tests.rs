use super::super::tests::{CGROUP, TASK_DIR, host, policy, user};
use super::*;
use crate::sandbox::plan::Plan;
use crate::sandbox::unveil::Unveil;

fn parse(rules: &[&str]) -> Vec<Unveil> {
    rules.iter().map(|rule| rule.parse().unwrap()).collect()
}

/// The plan of a job with these unveils and this work_dir, where jobs may unveil.
fn plan(defaults: bool, agent: &[&str], job: &[&str], work_dir: Option<&str>) -> Result<Plan, Denied> {
    let policy = Policy { unveil_defaults: defaults, unveil_paths: &parse(agent), ..policy() };
    let ask = Ask { unveil: &parse(job), work_dir: work_dir.map(Path::new), ..Ask::default() };
    policy.plan(&ask, &user(), host())
}

fn rules(defaults: bool, agent: &[&str], job: &[&str]) -> Vec<Rule> {
    plan(defaults, agent, job, None).unwrap().landlock.rules
}

fn find<'a>(rules: &'a [Rule], text: &str) -> &'a Rule {
    rules.iter().find(|rule| rule.to_string() == text).unwrap_or_else(|| panic!("no {text} in {rules:?}"))
}

#[test]
fn without_defaults_only_what_was_asked_for() {
    assert_eq!(rules(false, &[], &[]), []);
    let texts: Vec<_> =
        rules(false, &["r:/etc/mime.types"], &["rx:/opt/app"]).iter().map(Rule::to_string).collect();
    assert_eq!(texts, ["r:/etc/mime.types", "rx:/opt/app"]);
}

#[test]
fn a_job_unveils_only_where_the_operator_allows_it() {
    let strict = Policy { unveil_by_task: false, ..policy() };
    let unveil = parse(&["r:/srv"]);
    let ask = Ask { unveil: &unveil, ..Ask::default() };
    let denied = strict.plan(&ask, &user(), host()).unwrap_err();
    assert!(
        denied == Denied::UnveilByTask && denied.to_string().contains("unveil_by_task = true"),
        "{denied}"
    );
    assert!(strict.plan(&Ask::default(), &user(), host()).is_ok());
    find(&rules(true, &[], &["r:/srv"]), "r:/srv");
}

#[test]
fn the_tasks_own_directories_are_opened_from_its_root() {
    let rules = rules(true, &[], &[]);
    for directory in ["local", "alloc", "secrets", "tmp"] {
        let rule = find(&rules, &format!("rwxc:{TASK_DIR}/{directory}"));
        assert_eq!(rule.place, Place::beneath(TASK_DIR, directory));
        assert_eq!(rule.missing, Missing::Fail);
    }
    let logs = find(&rules, &format!("rx:{TASK_DIR}/alloc/logs"));
    assert_eq!(logs.place, Place::beneath(TASK_DIR, "alloc/logs"));
}

#[test]
fn a_path_below_one_that_tasks_can_change_follows_no_symlink() {
    let agent = ["rwc:/srv/shared", "r:/srv/shared/in"];
    let rules = rules(true, &agent, &["r:/data/alloc_mounts/1-web/local/x"]);
    assert_eq!(find(&rules, "r:/srv/shared/in").place, Place::beneath("/srv/shared", "in"));
    assert_eq!(find(&rules, &format!("r:{TASK_DIR}/local/x")).place, Place::beneath(TASK_DIR, "local/x"));
    assert_eq!(find(&rules, "rwc:/srv/shared").place, Place::host("/srv/shared"));
}

#[test]
fn asked_for_must_exist_and_defaults_need_not() {
    let rules = rules(true, &["r:/srv/www"], &[]);
    assert_eq!(find(&rules, "r:/srv/www").missing, Missing::Fail);
    assert_eq!(find(&rules, "rx:/usr/bin").missing, Missing::Skip);
    assert_eq!(find(&rules, &format!("r:{CGROUP}")).missing, Missing::Skip);
}

#[test]
fn the_working_directory_stays_inside_unless_allowed() {
    let of = |asked: Option<&str>, unveil_by_task| {
        let ask = Ask { work_dir: asked.map(Path::new), ..Ask::default() };
        let policy = Policy { unveil_by_task, ..policy() };
        policy.plan(&ask, &user(), host()).map(|plan| plan.work_dir.place)
    };
    assert_eq!(of(None, false), Ok(Place::beneath(TASK_DIR, "local")));
    assert_eq!(of(Some("alloc/data"), false), Ok(Place::beneath(TASK_DIR, "alloc/data")));
    assert_eq!(of(Some("/data/alloc_mounts/1-web/tmp"), false), Ok(Place::beneath(TASK_DIR, "tmp")));
    assert_eq!(of(Some("/srv"), false), Err(Denied::WorkDir("/srv".into())));
    assert_eq!(of(Some("/srv"), true), Ok(Place::host("/srv")));
    assert!(of(Some("/data/alloc_mounts/1-web-other"), false).is_err());
}

#[test]
fn the_working_directory_is_opened_from_above_what_tasks_can_change() {
    let of = |agent: &[&str], job: &[&str]| {
        plan(true, agent, job, Some("/srv/shared/app/run")).unwrap().work_dir.place
    };
    let beneath = Place::beneath("/srv/shared", "app/run");
    assert_eq!(of(&["rwc:/srv/shared"], &[]), beneath);
    assert_eq!(of(&[], &["rwc:/srv/shared"]), beneath);
    assert_eq!(of(&["rwc:/srv/shared/app"], &["c:/srv/shared"]), beneath);
    assert_eq!(of(&["rw:/srv/shared"], &["r:/srv"]), Place::host("/srv/shared/app/run"));
}

#[test]
fn each_path_is_opened_for_whoever_named_it() {
    let rules = rules(true, &["r:/srv/agent"], &["r:/srv/job"]);
    let named_by = |text: &str| find(&rules, text).named_by;
    assert_eq!(named_by("rx:/usr/bin"), NamedBy::Driver);
    assert_eq!(named_by(&format!("rwxc:{TASK_DIR}/local")), NamedBy::Driver);
    assert_eq!(named_by("r:/srv/agent"), NamedBy::Agent);
    assert_eq!(named_by("r:/srv/job"), NamedBy::Job);
    let of = |asked: Option<&str>| plan(true, &[], &[], asked).unwrap().work_dir.named_by;
    assert_eq!(
        (of(None), of(Some("local")), of(Some("/srv"))),
        (NamedBy::Driver, NamedBy::Job, NamedBy::Job)
    );
}

#[test]
fn proc_self_needs_the_whole_of_proc() {
    let judged = |defaults, agent: &[&str], job: &[&str]| plan(defaults, agent, job, None);
    for path in ["/proc/self/mountinfo", "/proc/thread-self", "/proc/self"] {
        let rule = format!("r:{path}");
        let error = judged(false, &[], &[&rule]).unwrap_err().to_string();
        assert!(error.contains(&rule) && error.contains("write \"r:/proc\""), "{error}");
        for (defaults, agent, job) in
            [(true, &[][..], &[&*rule][..]), (false, &["r:/proc"], &[&rule]), (false, &[&rule], &["rx:/"])]
        {
            let rules = rules(defaults, agent, job);
            assert!(rules.iter().all(|found| found.to_string() != rule), "{rules:?}");
        }
    }
    assert!(judged(true, &[], &["rw:/proc/self/comm"]).is_err(), "the default is for reading only");
    for path in ["root/etc/passwd", "cwd", "exe", "fd/3", "ns/net"] {
        let error = judged(true, &[], &[&format!("r:/proc/self/{path}")]).unwrap_err();
        assert!(matches!(error, Denied::MagicLink(_)), "{path}: {error}");
    }
    find(&rules(false, &[], &["r:/proc/selfish"]), "r:/proc/selfish");
}

#[test]
fn the_tasks_own_streams_need_no_rule() {
    let job = ["r:/dev/fd", "r:/dev/fd/0", "w:/dev/stderr", "r:/dev/stdin"];
    assert_eq!(rules(false, &["rw:/dev/stdout"], &job), []);
    find(&rules(false, &[], &["r:/dev/fdx"]), "r:/dev/fdx");
}

#[test]
fn what_nomad_and_the_driver_keep_is_denied_to_every_task() {
    let deny = [PathBuf::from("/srv/private")];
    let planned = |kept| {
        let policy = Policy { unveil_deny: &deny, ..policy() };
        let plan = policy.plan(&Ask::default(), &user(), Host { kept, ..host() }).unwrap();
        plan.landlock.denied
    };
    assert_eq!(planned(None), deny, "a task of `run` has nothing of Nomad's");
    let alloc = Path::new("/data/alloc/1");
    let all =
        ["/srv/private", "/run/records", "/data/alloc", "/data/alloc_mounts", "/data/client", "/data/server"];
    assert_eq!(planned(Some((alloc, Path::new("/run/records")))), all.map(PathBuf::from));
    let at_the_top = planned(Some((Path::new("/alloc"), Path::new("/run/records"))));
    assert!(!at_the_top.contains(&"/".into()), "{at_the_top:?}");
    let elsewhere = planned(Some((Path::new("/srv/allocs/1"), Path::new("/run/records"))));
    let all =
        ["/srv/private", "/run/records", "/srv/allocs", "/data/alloc_mounts", "/data/client", "/data/server"];
    assert_eq!(elsewhere, all.map(PathBuf::from), "/srv/client may be anybody's");
}

#[test]
fn what_a_job_may_unveil_is_in_the_plan() {
    let allow = parse(&["r:/srv"]);
    let landlock = |unveil_by_task, job: &[&str]| {
        let policy = Policy { unveil_by_task, unveil_allow: &allow, ..policy() };
        let plan = policy.plan(&Ask { unveil: &parse(job), ..Ask::default() }, &user(), host());
        plan.map(|plan| plan.landlock.allowed)
    };
    assert_eq!(landlock(true, &["r:/etc"]), Ok(None));
    // Whether that is allowed is decided when it is open.
    assert_eq!(landlock(false, &["r:/etc"]), Ok(Some(allow.clone())));
    let nothing = Policy { unveil_by_task: false, ..policy() };
    let asked = nothing.plan(&Ask { unveil: &parse(&["r:/srv"]), ..Ask::default() }, &user(), host());
    assert_eq!(asked, Err(Denied::UnveilByTask));
    for (work_dir, fine) in [("/srv/app", true), ("/opt", false)] {
        let policy = Policy { unveil_by_task: false, unveil_allow: &allow, ..policy() };
        let ask = Ask { work_dir: Some(Path::new(work_dir)), ..Ask::default() };
        assert_eq!(policy.plan(&ask, &user(), host()).is_ok(), fine, "{work_dir}");
    }
}
