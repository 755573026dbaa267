# What the module generates from configurations: values, assertions, and the files that the plugin validates.
{
  lib,
  pkgs,
  module,
  plugin,
  system,
}:
let
  machine =
    configuration:
    (lib.nixosSystem {
      modules = [
        module
        {
          nixpkgs.hostPlatform = system;
          nixpkgs.config.allowUnfreePredicate = package: lib.getName package == "nomad";
          services.nomad.enable = true;
          services.nomad-driver-exec2.enable = true;
          fileSystems."/" = {
            device = "/dev/vda";
            fsType = "ext4";
          };
          boot.loader.grub.device = "/dev/vda";
          system.stateVersion = "26.05";
        }
        configuration
      ];
    }).config;
  label = "nomad-driver-exec2";
  options = config: config.services.nomad.settings.plugin.${label}.config;
  complaints = config: map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
  complains = text: configuration: lib.any (lib.hasInfix text) (complaints (machine configuration));

  defaults = machine { };
  # A second driver's plugin, options as attributes, and an option that this version of the module does not know.
  rich = machine {
    services.nomad.settings.plugin.docker.config.allow_privileged = false;
    services.nomad.extraSettingsPlugins = [ other ];
    services.nomad-driver-exec2.settings = {
      unveil_by_task = true;
      unveil_paths = [
        "r:/etc/mime.types"
        "rwc:/srv/shared"
      ];
      allow_caps = [ "net_bind_service" ];
    };
  };
  withCni =
    configuration:
    machine {
      imports = [ configuration ];
      services.nomad.extraSettingsPlugins = [ pkgs.cni-plugins ];
    };
  warnsOfCni = config: lib.any (lib.hasInfix "cni_path") config.warnings;
  cniDriver = pkgs.writeShellScriptBin "nomad-driver-cni" "exit 1";
  # `lsm=` on the kernel command line, with Landlock and without duplicates.
  isLsmWithLandlock =
    parameter:
    let
      modules = lib.splitString "," (lib.removePrefix "lsm=" parameter);
    in
    lib.hasPrefix "lsm=" parameter && lib.elem "landlock" modules && lib.unique modules == modules;
  other = pkgs.writeShellScriptBin "nomad-driver-other" "exit 1";
  later = machine { services.nomad-driver-exec2.settings.from_the_future = [ "x" ]; };
  wrong = machine { services.nomad-driver-exec2.settings.unveil_paths = [ "q:/srv" ]; };
  # A machine that imports the module in two places.
  twice = machine { imports = [ module ]; };
  hardened = serviceConfig: { systemd.services.nomad = { inherit serviceConfig; }; };
  # The template, with a substitute for the file that nixos-generate-config writes on the machine.
  template =
    ((import ./template/flake.nix).outputs {
      nixpkgs.lib.nixosSystem =
        arguments:
        lib.nixosSystem (
          arguments
          // {
            modules = map (
              one: if one == ./template/hardware-configuration.nix then hardware else one
            ) arguments.modules;
          }
        );
      nomad-driver-exec2.nixosModules.default = module;
    }).nixosConfigurations.node.config;
  hardware = {
    nixpkgs.hostPlatform = system;
    fileSystems."/" = {
      device = "/dev/vda";
      fsType = "ext4";
    };
  };
  without = machine { services.nomad-driver-exec2.enable = lib.mkForce false; };

  validates = check: lib.hasInfix "nomad-driver-exec2-config" (lib.getName check);

  expected = {
    "the options have the driver's defaults" =
      options defaults == {
        root = "private";
        unveil_defaults = true;
        unveil_paths = [ ];
        unveil_by_task = false;
        unveil_allow = [ ];
        unveil_deny = [
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
        allow_caps = [ "default" ];
        ulimit = { };
        pids_max = 8192;
        memory_swap = 0;
        cpu_hard_limit = true;
        network_policy = { };
        abstract_sockets = "own";
        cpu_weight_max = 0;
        cpu_burst = 0;
        io_weight = 100;
        io_max = [ ];
        allow_root = true;
        denied_host_uids = "65534";
        denied_host_gids = "65534";
        dynamic_user_range = "80000-89999";
        volume_idmap = "auto";
        proc_hidepid = "off";
        seccomp = "default";
        allow_seccomp = [ ];
        namespace = { };
        disable_log_collection = false;
      };
    "the plugin's package is the agent's plugin" =
      defaults.services.nomad.extraSettingsPlugins == [ plugin ];
    "the agent runs as root and without Docker" =
      !defaults.services.nomad.dropPrivileges && !defaults.services.nomad.enableDocker;
    "Landlock is in the kernel's list, once" = lib.any isLsmWithLandlock defaults.boot.kernelParams;
    "what others add to that list is kept" =
      lib.elem "apparmor"
        (machine { security.lsm = [ "apparmor" ]; }).security.lsm;
    "a plain configuration passes all assertions" = complaints defaults == [ ];
    "options are passed on" =
      (options rich).unveil_by_task && (options rich).allow_caps == [ "net_bind_service" ];
    "unknown options are passed on" = (options later).from_the_future == [ "x" ];
    "another driver's block stays" =
      !rich.services.nomad.settings.plugin.docker.config.allow_privileged;
    "another driver's plugin stays" = lib.length rich.services.nomad.extraSettingsPlugins == 2;
    "the commands are on the PATH" = lib.elem plugin defaults.environment.systemPackages;
    "importing the module twice is the same as once" =
      complaints twice == [ ] && options twice == options defaults;
    "the template is a complete machine" =
      complaints template == [ ] && (options template).unveil_by_task;
    "without enable nothing is set" =
      !(without.services.nomad.settings ? plugin) && without.services.nomad.dropPrivileges;
    "a dynamic user is refused" = complains "dropPrivileges = false" {
      services.nomad.dropPrivileges = true;
    };
    "an old Nomad is refused" = complains "Nomad 1.8 or later" {
      services.nomad.package = pkgs.runCommand "nomad-1.7.7" { version = "1.7.7"; } "mkdir $out";
    };
    "a hardened unit is refused, by the names of the settings" =
      complains ": ProtectSystem, ReadWritePaths, RestrictNamespaces."
        (hardened {
          RestrictNamespaces = true;
          ProtectSystem = "strict";
          ReadWritePaths = [ "/var/lib/nomad" ];
          PrivateTmp = false;
        });
    "one that lacks every capability is refused" = complains ": CapabilityBoundingSet." (hardened {
      CapabilityBoundingSet = "";
    });
    "one with another user is refused" = complains ": User." (hardened {
      User = "nomad";
    });
    "settings without effect are accepted" =
      complaints (
        machine (hardened {
          User = "root";
          NoNewPrivileges = true; # set for tasks anyway
          CapabilityBoundingSet = "~";
          ProtectProc = "default";
          ProcSubset = "all";
          ProtectHome = "no";
          PrivateUsers = 0;
        })
      ) == [ ];
    "a unit that ends tasks with the agent is refused" = complains ''KillMode = "process"'' {
      systemd.services.nomad.serviceConfig.KillMode = lib.mkForce "mixed";
    };
    "CNI plugins among the agent's plugins are named in a warning" =
      warnsOfCni (withCni { }) && complaints (withCni { }) == [ ];
    "they are refused with a Nomad that starts them" = lib.any (lib.hasInfix "cni_path") (
      complaints (withCni {
        services.nomad.package = pkgs.runCommand "nomad-1.9.7" { version = "1.9.7"; } "mkdir $out";
      })
    );
    "plugins of Nomad's drivers are not mistaken for CNI plugins" =
      !warnsOfCni rich
      && !warnsOfCni (machine {
        services.nomad.extraSettingsPlugins = [ cniDriver ];
      });
    "a list without Landlock is refused" = complains "add \"landlock\"" {
      security.lsm = lib.mkForce [ "yama" ];
    };
    "cgroup v1 is refused" = complains "cgroup v2" {
      boot.kernelParams = [ "systemd.unified_cgroup_hierarchy=0" ];
    };
    "a system with a configuration that the plugin refuses does not build" =
      lib.any validates wrong.system.checks;
    "validation can be switched off" =
      !lib.any validates (machine { services.nomad-driver-exec2.validateConfig = false; }).system.checks;
    "a disabled agent causes a warning" =
      lib.any (lib.hasInfix "no effect")
        (machine { services.nomad.enable = lib.mkForce false; }).warnings;
  };
  wrongOnes = lib.attrNames (lib.filterAttrs (_: holds: !holds) expected);

  nomadJson = config: config.environment.etc."nomad.json".source;
  unit = config: pkgs.writeText "nomad.service" config.systemd.units."nomad.service".text;
in
assert lib.assertMsg (
  wrongOnes == [ ]
) "the module: not so: ${lib.concatStringsSep "; " wrongOnes}";
{
  module =
    pkgs.runCommand "exec2-module"
      {
        # Building this builds the module's own checks of these configurations.
        accepted = map toString (defaults.system.checks ++ rich.system.checks);
      }
      ''
        mkdir $out
        exec2=${lib.getExe plugin}
        $exec2 validate-config ${nomadJson template}
        $exec2 validate-config ${nomadJson rich} | tee $out/rich
        grep -qx 'unveil_by_task = true' $out/rich
        grep -qx 'unveil_paths = \["r:/etc/mime.types", "rwc:/srv/shared"\]' $out/rich

        for refused in ${nomadJson wrong} ${nomadJson later}; do
          if $exec2 validate-config "$refused" 2> message; then
            echo "$refused was accepted"; exit 1
          fi
          cat message
          grep -qE 'unveil_paths\[0\]|from_the_future' message
        done

        # The plugins are in the directory that the unit names.
        plugins=$(sed -n 's/^ExecStart=.* -plugin-dir=\([^ ]*\).*/\1/p' ${unit rich})
        ls "$plugins" | tee $out/plugins
        diff - $out/plugins <<'END'
        nomad-driver-exec2
        nomad-driver-other
        END
        cp ${nomadJson rich} $out/nomad.json
        cp ${unit rich} $out/nomad.service
      '';
}
