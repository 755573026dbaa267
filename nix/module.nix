# NixOS module: Nomad's client with the exec2 driver. It needs no overlay; the flake sets the package.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.nomad-driver-exec2;
  nomad = config.services.nomad;
  unit = config.systemd.services.nomad.serviceConfig;
  json = pkgs.formats.json { };
  # The label of the plugin's block is the file name of its binary.
  label = "nomad-driver-exec2";

  strings =
    example: description:
    lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      inherit example description;
    };

  # Values that systemd reads as off.
  isOff =
    value:
    lib.elem (toString value) [
      ""
      "0"
      "default"
      "f"
      "false"
      "n"
      "no"
      "off"
    ];
  offWhen = {
    # An empty one removes every capability; ~ alone grants all of them.
    CapabilityBoundingSet = value: value == null || value == [ ] || toString value == "~";
    ProcSubset = value: isOff value || value == "all";
    User = value: isOff value || value == "root";
  };
  # Settings of the unit with which the driver cannot work, see systemd.exec(5). Nomad's own unit has none of them.
  breaking = lib.filter (name: unit ? ${name} && !(offWhen.${name} or isOff) unit.${name}) (
    # Give the agent its own mount namespace, a new one with each start: the next agent does not see what this one has mounted for
    # its tasks, and loses them.
    [
      "BindPaths"
      "BindReadOnlyPaths"
      "ExecPaths"
      "ExtensionDirectories"
      "ExtensionImages"
      "IPCNamespacePath"
      "InaccessiblePaths"
      "LogNamespace"
      "MountAPIVFS"
      "MountImages"
      "NoExecPaths"
      "PrivateDevices"
      "PrivateIPC"
      "PrivateMounts"
      "PrivateTmp"
      "ProcSubset"
      "ProtectControlGroups"
      "ProtectHome"
      "ProtectKernelLogs"
      "ProtectKernelModules"
      "ProtectKernelTunables"
      "ProtectProc"
      "ProtectSystem"
      "ReadOnlyPaths"
      "ReadWritePaths"
      "RootDirectory"
      "RootImage"
      "TemporaryFileSystem"
    ]
    # Make the agent another user than root, or remove rights that a task start needs.
    ++ [
      "CapabilityBoundingSet"
      "DynamicUser"
      "PrivateNetwork"
      "PrivateUsers"
      "RestrictFileSystems"
      "RestrictNamespaces"
      "SecureBits"
      "User"
    ]
    # Install system call filters, which every task would inherit.
    ++ [
      "LockPersonality"
      "MemoryDenyWriteExecute"
      "ProtectClock"
      "ProtectHostname"
      "RestrictAddressFamilies"
      "RestrictRealtime"
      "RestrictSUIDSGID"
      "SystemCallArchitectures"
      "SystemCallFilter"
    ]
  );
  cgroupV1 = lib.filter (
    parameter:
    lib.elem parameter [
      "systemd.unified_cgroup_hierarchy=0"
      "systemd.unified_cgroup_hierarchy=no"
      "systemd.unified_cgroup_hierarchy=false"
    ]
  ) config.boot.kernelParams;

  # CNI plugins among the agent's plugins, recognised by package name: an evaluation cannot look into a package.
  cniPackages = lib.filter (
    name: lib.elem "cni" (lib.splitString "-" name) && !lib.hasPrefix "nomad-" name
  ) (map lib.getName (lib.filter lib.isDerivation nomad.extraSettingsPlugins));
  # The first Nomad that skips programs in its plugin directory that have no plugin block.
  skipsPrograms = "1.10";

  # The plugin checks the configuration that the agent will pass to it.
  validated = pkgs.runCommand "nomad-driver-exec2-config" { } ''
    ${lib.getExe cfg.package} validate-config ${config.environment.etc."nomad.json".source} > $out
  '';
in
{
  options.services.nomad-driver-exec2 = {
    enable = lib.mkEnableOption "the exec2 task driver in this machine's Nomad client; `services.nomad.enable` is separate";

    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.nomad-driver-exec2;
      defaultText = lib.literalMD "the static build of this flake";
      description = "The plugin.";
    };

    settings = lib.mkOption {
      default = { };
      example = {
        unveil_by_task = true;
        allow_caps = [ "net_bind_service" ];
      };
      description = ''
        The options in `plugin "nomad-driver-exec2" { config { … } }` of the agent's configuration. An option that is not listed here
        is passed on unchanged.
      '';
      # Set explicitly: the default description differs between versions of nixpkgs, and docs/nixos.md contains it.
      type = lib.types.submoduleWith {
        description = "submodule";
        shorthandOnlyDefinesConfig = true;
        modules = lib.singleton {
          freeformType = lib.types.attrsOf json.type;
          options = {
            root = lib.mkOption {
              type = lib.types.enum [
                "private"
                "host"
              ];
              default = "private";
              description = ''
                What a task has as its root directory: `private`, one with nothing but what is unveiled, or `host`, the host's tree,
                in which Landlock denies access to the rest.
              '';
            };
            unveil_defaults = lib.mkOption {
              type = lib.types.bool;
              default = true;
              description = ''
                Give every task the default paths, `/nix/store` and `/run/current-system/sw` among them, and its own directories.
                Without them a task can open only paths that are unveiled explicitly.
              '';
            };
            unveil_paths = strings [ "r:/etc/mime.types" ] ''
              More paths for every task, as `MODES:PATH`. Modes are `r` (read), `w` (write), `x` (execute) and `c` (create, rename and
              remove). Each path must exist on the node: for `/etc/mime.types`, which web servers read, set
              `environment.etc."mime.types".source = "''${pkgs.mailcap}/etc/mime.types"`.
            '';
            unveil_by_task = lib.mkOption {
              type = lib.types.bool;
              default = false;
              description = ''
                Let jobs unveil paths, and set a `work_dir` outside the allocation. Job submitters then decide what their tasks can open,
                within the file permissions of the task's user.
              '';
            };
            unveil_allow = strings [ "r:/srv" ] ''
              What jobs may unveil if `unveil_by_task` is false, with these modes or fewer. It is decided on what a path leads to.
            '';
            unveil_deny = lib.mkOption {
              type = lib.types.listOf lib.types.str;
              default = [
                "/etc/gshadow"
                "/etc/gshadow-"
                "/etc/nomad.d"
                "/etc/security/opasswd"
                "/etc/shadow"
                "/etc/shadow-"
                "/run/buildkit"
                "/run/containerd"
                "/run/cri-dockerd.sock"
                "/run/crio"
                "/run/docker.sock"
                "/run/k3s"
                "/run/libvirt"
                "/run/podman"
                "/run/systemd/private"
                "/var/backups"
                "/var/lib/incus"
                "/var/lib/lxd"
                "/var/snap/lxd/common/lxd"
              ];
              description = ''
                What no task may have, by any unveil of it or of a directory above it. `default` in the list stands for the default list.
              '';
            };
            allow_caps = lib.mkOption {
              type = lib.types.listOf lib.types.str;
              default = [ "default" ];
              example = [
                "default"
                "net_raw"
              ];
              description = ''
                Capabilities that jobs may request with `cap_add`; a task has only those that it requests. `default` in the list stands for
                those that give a task no more than the other options do. docs/security.md names those that make a task root on the host.
              '';
            };
            ulimit = lib.mkOption {
              type = lib.types.attrsOf lib.types.str;
              default = { };
              example = {
                nofile = "1024:65536";
              };
              description = ''
                Limits of every task's processes, getrlimit(2), as `SOFT:HARD` or one value for both. For those that it names, jobs may ask for
                no higher hard limit; for the others, the agent's own are the highest.
              '';
            };
            pids_max = lib.mkOption {
              type = lib.types.ints.unsigned;
              default = 8192;
              description = ''
                How many processes and threads a task may have; 0 is no limit. Jobs may ask for fewer.
              '';
            };
            memory_swap = lib.mkOption {
              type = lib.types.int;
              default = 0;
              description = ''
                MiB of swap that a task may use; -1 is no limit. Jobs may ask for less.
              '';
            };
            cpu_hard_limit = lib.mkOption {
              type = lib.types.bool;
              default = true;
              description = ''
                `cpu` is the most that a task gets. Otherwise it is a share of a busy CPU, and jobs may ask for the limit.
              '';
            };
            network_policy = lib.mkOption {
              type = lib.types.attrsOf lib.types.anything;
              default = { };
              example = {
                bind = [ "@allocated" ];
              };
              description = ''
                Ports to which tasks may bind and connect: the lists `bind`, `connect`, `bind_udp` and `connect_udp`, and `unsupported`,
                `error` or `ignore`, for what this kernel cannot limit. A job may narrow them.
              '';
            };
            abstract_sockets = lib.mkOption {
              type = lib.types.enum [
                "own"
                "host"
              ];
              default = "own";
              description = ''
                To which abstract unix sockets tasks in the host's network may connect: their `own`, or all of the `host`.
              '';
            };
            cpu_weight_max = lib.mkOption {
              type = lib.types.ints.unsigned;
              default = 0;
              description = ''
                The highest `cpu_weight` that a job may ask for; 0: that of its `cpu`.
              '';
            };
            cpu_burst = lib.mkOption {
              type = lib.types.ints.unsigned;
              default = 0;
              description = ''
                How much of its CPU quota a task may save for later, percent of the quota of 100 ms. Jobs may ask for less.
              '';
            };
            io_weight = lib.mkOption {
              type = lib.types.ints.unsigned;
              default = 100;
              description = ''
                The share of a busy disk, 1 to 10000. Jobs may ask for less.
              '';
            };
            io_max = strings [ "/dev/vda rbps=104857600 wiops=1000" ] ''
              The most that a task may read and write of a disk. Jobs may ask for less.
            '';
            allow_root = lib.mkOption {
              type = lib.types.bool;
              default = true;
              description = ''
                Let jobs have `user = "root"`.
              '';
            };
            denied_host_uids = lib.mkOption {
              type = lib.types.str;
              default = "65534";
              example = "65534,100-999";
              description = ''
                Uids that no task may have, as ids and ranges. 65534 is `nobody`, to whom Nomad gives the shared directory of every allocation.
              '';
            };
            denied_host_gids = lib.mkOption {
              type = lib.types.str;
              default = "65534";
              example = "65534,100-999";
              description = ''
                Gids that no task may have, as its group or as another one.
              '';
            };
            dynamic_user_range = lib.mkOption {
              type = lib.types.str;
              default = "80000-89999";
              example = "50000-50999";
              description = ''
                The uids of dynamic workload users (`nomad-N`). It must match `dynamic_user_min` and `dynamic_user_max` in the `users` block
                of Nomad's client configuration. Others are refused.
              '';
            };
            volume_idmap = lib.mkOption {
              type = lib.types.enum [
                "auto"
                "never"
              ];
              default = "auto";
              description = ''
                `auto`: where a job names no user, the owner of a volume appears as the task's dynamic user. `never`: volumes are mounted
                as they are.
              '';
            };
            proc_hidepid = lib.mkOption {
              type = lib.types.enum [
                "off"
                "noaccess"
                "invisible"
                "ptraceable"
              ];
              default = "off";
              description = ''
                Which processes of other users a task sees in its `/proc`: `off`, all of the task, or fewer.
              '';
            };
            seccomp = lib.mkOption {
              type = lib.types.enum [
                "default"
                "unconfined"
              ];
              default = "default";
              description = ''
                Which system calls tasks may make: `default`, all but those of some groups, which docs/security.md lists, or
                `unconfined`, all.
              '';
            };
            allow_seccomp = strings [ "io_uring" ] ''
              What jobs may ask for: groups of system calls for `seccomp_allow`, and `unconfined` for `seccomp`.
            '';
            namespace = lib.mkOption {
              type = lib.types.attrsOf (lib.types.attrsOf lib.types.anything);
              default = { };
              example = {
                build = {
                  unveil_allow = [ "rx:/opt/toolchains" ];
                };
              };
              description = ''
                For the jobs of one Nomad namespace, other values of options that are about what jobs may do.
              '';
            };
            disable_log_collection = lib.mkOption {
              type = lib.types.bool;
              default = false;
              description = ''
                Send the output of tasks to the journal instead of to Nomad's log collector, which is a process for each task. Where there
                is no journal, the output goes to at most 10 files of 10 MiB for each stream in the allocation's log directory.
              '';
            };
          };
        };
      };
    };

    validateConfig = lib.mkOption {
      type = lib.types.bool;
      default = pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;
      defaultText = lib.literalMD "true where the machine that builds can run the plugin";
      description = "Whether building the system fails if the plugin would refuse its configuration.";
    };
  };

  config = lib.mkIf cfg.enable {
    services.nomad = {
      extraSettingsPlugins = [ cfg.package ];
      # Nomad starts no external plugin without a block, so it is written even if no option is set.
      settings.plugin.${label}.config = cfg.settings;
      # The driver creates namespaces, cgroups and processes of other users.
      dropPrivileges = lib.mkDefault false;
      enableDocker = lib.mkDefault false;
    };

    # The commands check, run and validate-config.
    environment.systemPackages = [ cfg.package ];

    # NixOS' own list has it, and definitions of the same priority are merged: this one applies only if nothing else sets the list.
    security.lsm = lib.mkDefault [ "landlock" ];

    system.checks = lib.mkIf (nomad.enable && cfg.validateConfig) [ validated ];

    warnings =
      lib.optional (!nomad.enable) ''
        services.nomad-driver-exec2.enable has no effect without an agent: set services.nomad.enable = true.
      ''
      ++ lib.optional (cniPackages != [ ]) ''
        services.nomad.extraSettingsPlugins is for Nomad's plugins, and ${lib.concatStringsSep ", " cniPackages} has CNI plugins: the agent
        logs a warning for each of them. Remove it and set services.nomad.settings.client.cni_path.
      '';

    assertions = lib.mkIf nomad.enable [
      {
        assertion = !nomad.dropPrivileges;
        message = "The exec2 driver needs an agent that runs as root: set services.nomad.dropPrivileges = false.";
      }
      {
        assertion = lib.versionAtLeast (lib.getVersion nomad.package) "1.8";
        message = "The exec2 driver needs Nomad 1.8 or later, and services.nomad.package is ${lib.getVersion nomad.package}.";
      }
      {
        assertion = cniPackages == [ ] || lib.versionAtLeast (lib.getVersion nomad.package) skipsPrograms;
        message = ''
          Nomad before ${skipsPrograms} starts every program of services.nomad.extraSettingsPlugins as a plugin, and exits if one is not a
          plugin: remove ${lib.concatStringsSep ", " cniPackages}, and set services.nomad.settings.client.cni_path.
        '';
      }
      {
        assertion = breaking == [ ];
        message = ''
          With this hardening of nomad.service, the exec2 driver could not start tasks, or would lose them with the next restart of the
          agent. Remove from systemd.services.nomad.serviceConfig: ${lib.concatStringsSep ", " breaking}.
        '';
      }
      {
        assertion = unit.KillMode or "control-group" == "process";
        message = ''
          Tasks of the exec2 driver would end with every restart of the agent: set systemd.services.nomad.serviceConfig.KillMode = "process".
        '';
      }
      {
        assertion = config.security.lsm == [ ] || lib.elem "landlock" config.security.lsm;
        message = ''The exec2 driver needs Landlock: add "landlock" to security.lsm.'';
      }
      {
        assertion = cgroupV1 == [ ];
        message = "The exec2 driver needs cgroup v2: remove ${toString cgroupV1} from boot.kernelParams.";
      }
    ];
  };
}
