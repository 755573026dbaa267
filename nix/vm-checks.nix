# What the VM tests are made of, without booting any: which there are, and what their machines have.
{
  lib,
  pkgs,
  module,
  # All VM tests, by name.
  tests,
}:
let
  names = lib.attrNames tests;
  # The names with another nixpkgs; nothing of it is built.
  namesWith =
    changed:
    lib.attrNames (
      import ../nixos-tests/nixos {
        inherit lib module;
        pkgs = changed;
        warn = _: value: value;
      }
    );
  withoutOne = lib.filter (name: !lib.hasSuffix "-linux-6_1" name) names;

  machine = tests.vm-isolation-linux-latest.nodes.machine;
  inherit (machine.users) groups users;
  named =
    id: name: users.${name}.group == name && users.${name}.uid == id && groups.${name}.gid == id;

  # Nomad's default for an allocation, and the most allocations that any scenario runs at once (reliability_kills).
  diskOfAllocMb = 300;
  allocs = 40;
  # The file system's own part of a disk, with room for the system and its logs.
  usablePercent = 90;

  expected = {
    "there are tests on the kernel that nixpkgs always has" =
      lib.any (lib.hasSuffix "-linux-latest") names;
    "only the tests of a kernel that nixpkgs no longer has are left out" =
      namesWith (removeAttrs pkgs [ "linuxPackages_6_1" ]) == withoutOne;
    "the same for one that throws" =
      namesWith (pkgs // { linuxPackages_6_1 = throw "end of life"; }) == withoutOne;
    "the same for one whose kernel throws" =
      namesWith (pkgs // { linuxPackages_6_1.kernel = throw "end of life"; }) == withoutOne;
    "a task that runs out of memory does not panic the machine" =
      machine.boot.kernel.sysctl."vm.panic_on_oom" == 0;
    "alice and bob have groups of their own, as on Debian" = named 1001 "alice" && named 1002 "bob";
    "a scenario has the packages that its head names" =
      let
        isGit = package: lib.getName package == "git";
        has = test: lib.any isGit test.nodes.machine.environment.systemPackages;
      in
      has tests.vm-programs-linux-6_12 && !has tests.vm-isolation-linux-6_12;
    "there is disk for every allocation of a scenario" =
      machine.virtualisation.diskSize * usablePercent / 100 >= allocs * diskOfAllocMb;
    "Nomad starts with an IPv4 address" = machine.networking.dhcpcd.wait or "ipv4" == "ipv4";
  };
  wrongOnes = lib.attrNames (lib.filterAttrs (_: holds: !holds) expected);
in
assert lib.assertMsg (
  wrongOnes == [ ]
) "the VM tests: not so: ${lib.concatStringsSep "; " wrongOnes}";
{
  # The library that each test imports is there, and has what the test imports from it.
  vm-imports = pkgs.runCommand "exec2-vm-imports" { nativeBuildInputs = [ pkgs.python3 ]; } ''
    python3 ${../nixos-tests/selftest/imports.py} ${
      pkgs.writeText "scripts.json" (builtins.toJSON (lib.mapAttrs (_: test: test.script) tests))
    } > $out
  '';
  vms = pkgs.writeText "exec2-vms" (lib.concatLines names);
}
