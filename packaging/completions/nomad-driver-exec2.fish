# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_nomad_driver_exec2_global_optspecs
    string join \n h/help V/version
end

function __fish_nomad_driver_exec2_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_nomad_driver_exec2_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_nomad_driver_exec2_using_subcommand
    set -l cmd (__fish_nomad_driver_exec2_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_needs_command" -s V -l version -d 'Print version'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_needs_command" -f -a "run" -d 'Run a program in the driver\'s sandbox, without Nomad'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_needs_command" -f -a "exec" -d 'Run a command in a running task, or list the running tasks'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_needs_command" -f -a "check" -d 'Show whether this host can run the driver\'s tasks, and what to fix'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_needs_command" -f -a "validate-config" -d 'Check a plugin configuration before an agent uses it'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l unveil -d 'Grant an absolute path: MODES are any of r (read), w (write), x (execute, with r), c (create); may be repeated' -r
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l volume -d 'Mount a file or directory of the host at another path, read-only with :ro; may be repeated' -r
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l device -d 'Give the command a device of the host, at another path below /dev or with fewer of the permissions rwm; may be repeated' -r
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l user -d 'Run as this user: a name, a uid, uid:gid, or nomad-N [default: an unused one of nomad-90000 to nomad-99999]' -r
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l memory -d 'Limit the memory, in MiB' -r
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l cpu -d 'Limit the CPU, in MHz' -r
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l ulimit -d 'Limit the command\'s processes, getrlimit(2), for example nofile=1024:4096; may be repeated' -r
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l bind -d 'Let the command bind only to this TCP port or range, for example 8000-8010; may be repeated; none: to no port' -r
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l connect -d 'Let the command connect only to this TCP port or range; may be repeated; none: to no port' -r
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l bind-udp -d 'Let the command bind only to this UDP port or range; may be repeated; none: to no port' -r
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l connect-udp -d 'Let the command send only to this UDP port or range; may be repeated; none: to no port' -r
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l cap-add -d 'Grant a capability, for example net_bind_service; may be repeated' -r
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l seccomp -d 'Which system calls the command may make: all but those of some groups, or all' -r -f -a "default\t'All but those of some groups'
unconfined\t'All'"
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l seccomp-allow -d 'Allow a group of system calls, for example io_uring; may be repeated' -r -f -a "accounting\t'writes about every process of the host to a file'
bpf\t'programs in the kernel, whose verifier had many defects'
chroot\t'another root directory is of use only with privileges'
clock\t'sets the time of the host'
device_nodes\t'a device node gives access to the device wherever the host mounts its file system'
file_handles\t'opens and watches files by number, past directories that the task cannot enter'
hostname\t'the host name is part of the network that Nomad provides'
io_ports\t'direct access to hardware'
io_uring\t'its operations pass by every filter, and it had many defects'
kernel_log\t'reads and clears the messages of the kernel, which have addresses and the names of others\' processes'
kexec\t'starts another kernel'
keyrings\t'keyrings belong to a uid, not to a task, and the next task may have the same uid'
modules\t'code in the kernel'
mount\t'Landlock forbids mounts, but the calls reach much code before that'
namespaces\t'a user namespace gives capabilities, and with them access to much code of the kernel that is for root only otherwise'
netlink\t'all protocols but NETLINK_ROUTE, NETLINK_SOCK_DIAG and NETLINK_KOBJECT_UEVENT: configuration of the network, audit, cryptography'
obsolete\t'no program that is maintained uses them'
other_sockets\t'families other than unix, inet, inet6, netlink, packet and vsock load rarely used modules: alg, bluetooth, can, tipc, xdp'
packet_sockets\t'reads and forges the traffic of others'
perf\t'measures other processes, and had many defects'
personality\t'values other than PER_LINUX, PER_LINUX32, UNAME26 and ADDR_NO_RANDOMIZE: they imitate other systems, and weaken protections of memory'
processes\t'takes descriptors of other processes, compares kernel objects, changes how their memory is kept'
quota\t'the disk quotas of the host'
reboot\t'ends the host, or the task\'s PID namespace without an exit status'
set_id\t'makes set-uid and set-gid files and directories, by which a user of the host becomes the task\'s user'
swap\t'the swap of the host'
tcp_variants\t'MPTCP, SMC and TCP Fast Open pass by the limits on ports; refused only to a task whose network_policy has bind or connect'
terminals\t'types into a terminal (TIOCSTI, TIOCLINUX), takes the console\'s output (TIOCCONS), loads line disciplines (TIOCSETD)'
userfaultfd\t'stops the kernel at an access to memory, which makes races in the kernel easy to win'
vsock\t'sockets between a virtual machine and its host, which network namespaces do not separate'"
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l env -d 'Set a variable, or pass on the caller\'s variable of this name; may be repeated [default: PATH, TERM, LANG, LC_*, TZ]' -r
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l work-dir -d 'Start in this directory, absolute or relative to the task\'s own [default: local]' -r -F
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l root -d 'Root directory of the task: private, with nothing in it but what is unveiled, or the host\'s' -r -f -a "private\t'One of its own'
host\t'The host\'s'"
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -l no-defaults -d 'Grant only the paths of --unveil: no system paths, not even the task\'s own directories'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand exec" -s h -l help -d 'Print help'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand check" -l root -d 'The plugin\'s option root: whether tasks have a private root directory or the host\'s' -r -f -a "private\t'One of its own'
host\t'The host\'s'"
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand check" -l seccomp -d 'The plugin\'s option seccomp: which system calls tasks may make' -r -f -a "default\t'All but those of some groups'
unconfined\t'All'"
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand check" -l json -d 'Print a JSON object instead of a table'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand validate-config" -s h -l help -d 'Print help'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand help; and not __fish_seen_subcommand_from run exec check validate-config help" -f -a "run" -d 'Run a program in the driver\'s sandbox, without Nomad'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand help; and not __fish_seen_subcommand_from run exec check validate-config help" -f -a "exec" -d 'Run a command in a running task, or list the running tasks'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand help; and not __fish_seen_subcommand_from run exec check validate-config help" -f -a "check" -d 'Show whether this host can run the driver\'s tasks, and what to fix'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand help; and not __fish_seen_subcommand_from run exec check validate-config help" -f -a "validate-config" -d 'Check a plugin configuration before an agent uses it'
complete -c nomad-driver-exec2 -n "__fish_nomad_driver_exec2_using_subcommand help; and not __fish_seen_subcommand_from run exec check validate-config help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
