# What the scenarios find on every machine: one agent that is server and client, the driver, the example jobs, two users. The
# Debian guests of nixos-tests/run have the same (runner/guest/root).
{
  lib,
  options,
  pkgs,
  ...
}:
let
  # Debian's useradd gives each user a group of the same name and number.
  people = {
    alice = 1001;
    bob = 1002;
  };
  # By name, so that a package set without one of them still evaluates, and only the scenario that needs it fails.
  present = names: lib.filter (package: package != null) (map (name: pkgs.${name} or null) names);
  # For jobs, which look commands up in the agent's PATH.
  commands = present [
    "bash"
    "curl"
    "jdk_headless"
    "procps"
    "python3"
    "strace"
    "util-linux"
  ];
in
{
  services.nomad = {
    enable = true;
    extraPackages = commands;
    settings = {
      bind_addr = "127.0.0.1";
      # Without it a loopback address is refused outside dev mode.
      advertise = {
        http = "127.0.0.1";
        rpc = "127.0.0.1";
        serf = "127.0.0.1";
      };
      server = {
        enabled = lib.mkDefault true;
        bootstrap_expect = lib.mkDefault 1;
        raft_multiplier = 1;
        default_scheduler_config.memory_oversubscription_enabled = true;
      };
      # Without it Nomad 2.0 collects no statistics of tasks.
      telemetry.publish_allocation_metrics = true;
      client = {
        enabled = lib.mkDefault true;
        network_interface = "eth0";
        cni_path = "${pkgs.cni-plugins}/bin";
        # 2 cores of 2000 MHz whatever the host has, so that a task's `cpu` is the same share everywhere.
        cpu_total_compute = 4000;
        options = {
          "driver.allowlist" = "exec2";
          "fingerprint.denylist" = "env_aws,env_azure,env_gce,env_digitalocean";
        };
      };
    };
  };

  # A scenario must notice a crash, and may restart the agent often.
  systemd.services.nomad = {
    serviceConfig.Restart = lib.mkForce "no";
    unitConfig.StartLimitIntervalSec = lib.mkForce 0;
  };
  # Nomad detects bridge networking by this module, loaded or below /lib/modules, which does not exist here.
  boot.kernelModules = [ "bridge" ];

  services.nomad-driver-exec2 = {
    enable = true;
    settings = {
      unveil_by_task = true;
      unveil_paths = [ "r:/etc/mime.types" ];
      allow_caps = [ "net_bind_service" ];
    };
  };

  environment.systemPackages =
    commands
    ++ present [
      "iproute2"
      "jq"
      "iptables"
      "netcat"
      "nftables"
    ];
  environment.etc = {
    "mime.types".text = "text/html html htm\n";
  }
  // lib.mapAttrs' (
    name: _: lib.nameValuePair "exec2-examples/${name}" { source = ../../examples + "/${name}"; }
  ) (lib.filterAttrs (name: _: lib.hasSuffix ".nomad.hcl" name) (builtins.readDir ../../examples));

  # Scenarios connect from the machine itself to tasks on the host's network.
  networking.firewall.enable = false;
  # By default an IPv6 address is enough for network-online.target, and Nomad reads the addresses of an interface only when it
  # starts: jobs could then have no IPv4 address for their ports. By name, so that a NixOS without the option still evaluates.
  networking.dhcpcd = lib.optionalAttrs (options.networking.dhcpcd ? wait) { wait = "ipv4"; };

  users.users = lib.mapAttrs (name: uid: {
    isNormalUser = true;
    inherit uid;
    group = name;
  }) people;
  users.groups = lib.mapAttrs (_: gid: { inherit gid; }) people;

  # NixOS' test framework sets 2, with which the first task that reaches its memory limit panics the machine.
  boot.kernel.sysctl."vm.panic_on_oom" = lib.mkForce 0;
}
