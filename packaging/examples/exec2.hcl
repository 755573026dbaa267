# Example Nomad client configuration for the exec2 task driver.
#
# Copy it to Nomad's configuration directory (often /etc/nomad.d), change what
# you need, and restart the agent. Running tasks survive the restart.
#
# Keep nothing but plugins in plugin_dir: Nomad before 1.10 starts every
# executable there. Without plugin_dir Nomad looks in <data_dir>/plugins.
#
# plugin_dir = "/opt/nomad/data/plugins"

# The label is the file name of the plugin's binary, not the driver's name.
# Nomad 1.10 and later do not start a plugin without a block.
plugin "nomad-driver-exec2" {
  config {
    # "private": each task has a root directory of its own, with nothing in it
    # but what is unveiled. "host": it sees the host's tree, in which Landlock
    # denies access to the rest.
    root = "private"

    # Give every task the paths that most programs need: /bin, /usr/bin,
    # /usr/share, shared libraries, certificates, resolver files, and the
    # task's own directories. docs/security.md lists each path with its reason.
    unveil_defaults = true

    # More paths for every task, as "MODES:PATH". Modes: r read, w write,
    # x execute, c create and remove. A path that does not exist is an error.
    # unveil_paths = ["rx:/opt/bin", "r:/srv/certs"]
    unveil_paths = []

    # Let jobs unveil paths, and set a `work_dir` outside the allocation. Job
    # submitters then decide what their tasks can open, within the file
    # permissions of the task's user.
    unveil_by_task = false

    # What jobs may unveil if unveil_by_task is false, with these modes or fewer:
    # unveil_allow = ["r:/srv", "rwc:/var/lib/jobs"]
    unveil_allow = []

    # What no task may have, by any unveil of it or of a directory above it. "default"
    # in the list stands for this list.
    unveil_deny = ["/etc/gshadow", "/etc/gshadow-", "/etc/nomad.d", "/etc/security/opasswd", "/etc/shadow", "/etc/shadow-", "/run/buildkit", "/run/containerd", "/run/cri-dockerd.sock", "/run/crio", "/run/docker.sock", "/run/k3s", "/run/libvirt", "/run/podman", "/run/systemd/private", "/var/backups", "/var/lib/incus", "/var/lib/lxd", "/var/snap/lxd/common/lxd"]

    # Capabilities that a job may request with cap_add. A task, root included,
    # has only those that it requests. "default" stands for those that give a
    # task no more than the other options do. Some others make a task root on
    # this host: docs/security.md names them. [] allows none.
    allow_caps = ["default"]

    # Limits of every task's processes, getrlimit(2), as "SOFT:HARD" or one value
    # for both. A job may ask for others, up to these hard limits; limits that are
    # not named here are the agent's own.
    # ulimit {
    #   nofile = "1024:65536"
    # }
    ulimit {}

    # How many processes and threads a task may have, so that a fork bomb leaves
    # the host enough. 0: no limit. A job may ask for fewer.
    pids_max = 8192

    # MiB of swap that a task may use; -1: no limit. With 0, a task ends when it
    # has used its memory, instead of slowing the host down. A job may ask for less.
    memory_swap = 0

    # true: `cpu` is the most that a task gets. false: it is a share of a busy CPU,
    # and a job may ask for the limit.
    cpu_hard_limit = true

    # Ports to which tasks may bind and connect: numbers, ranges, and "@allocated",
    # all ports that Nomad gave the allocation. A direction without a list is free;
    # [] denies all of it. A job may narrow this with a block of its own.
    # network_policy {
    #   bind        = ["@allocated", "30000-30999"]
    #   connect     = ["443", "8300-8600"]
    #   connect_udp = ["53"]   # Linux 7.2
    #   unsupported = "ignore" # what this kernel cannot limit; else an error
    # }
    network_policy {}

    # To which abstract unix sockets tasks in the host's network may connect, from
    # Linux 6.12 on: "own", those that the task has made, or "host", all of the host's.
    abstract_sockets = "own"

    # The highest cpu_weight that a job may ask for; 0: that of its `cpu`.
    cpu_weight_max = 0

    # How much of its CPU quota a task may save for later, percent of the quota of
    # 100 ms. A job may ask for less.
    cpu_burst = 0

    # The share of a busy disk, 1 to 10000, and the most that a task may read and
    # write of a disk. A job may ask for less.
    # io_max = ["/dev/vda rbps=104857600 wbps=52428800 riops=2000 wiops=1000"]
    io_weight = 100
    io_max = []

    # Whether jobs may have user = "root".
    allow_root = true

    # Uids and gids that no task may have, such as those of the host's services:
    # "65534,100-999". 65534 is nobody, to whom Nomad gives the shared directory of
    # every allocation.
    denied_host_uids = "65534"
    denied_host_gids = "65534"

    # The uids that Nomad assigns to tasks without a user: dynamic_user_min and
    # dynamic_user_max in the client's users block. A job that names another
    # dynamic user (user = "nomad-N") is refused.
    dynamic_user_range = "80000-89999"

    # "auto": where a job names no user, the owner of a volume appears as the
    # task's dynamic user. "never": volumes are mounted as they are.
    volume_idmap = "auto"

    # Which processes of other users a task sees in its /proc: "off", all of the
    # task, or fewer: "noaccess", "invisible", "ptraceable".
    proc_hidepid = "off"

    # "default": tasks may make all system calls but those of some groups, which
    # docs/security.md lists. "unconfined": all.
    seccomp = "default"

    # What jobs may ask for: groups for seccomp_allow, for example "io_uring",
    # and "unconfined" for seccomp.
    allow_seccomp = []

    # For the jobs of one Nomad namespace, other values of options that are about
    # what jobs may do.
    # namespace "build" {
    #   unveil_allow = ["rx:/opt/toolchains"]
    # }

    # true: the output of tasks goes to the journal instead of to Nomad's log
    # collector, which is a process for each task. Where there is no journal, it
    # goes to at most 10 files of 10 MiB for each stream in the allocation's log
    # directory. Drain the node before you change it.
    disable_log_collection = false
  }
}
