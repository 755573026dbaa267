# The scenarios of this folder as NixOS tests, each on each kernel: vm-NAME-linux-6_12. The files are those that
# nixos-tests/run boots on Debian's kernels; the markers in their heads say which machines they are for.
{
  lib,
  pkgs,
  # The NixOS module of the driver.
  module,
  warn ? lib.warn,
}:
let
  # nixpkgs drops a kernel at the end of its life, and its attribute is then missing or throws. That must not break the
  # evaluation of the other tests, let alone of the flake: the kernel is left out, with a warning.
  kernels = lib.filterAttrs (name: _: isThere name) (
    lib.genAttrs [ "6_1" "6_6" "6_12" "6_18" "latest" ] (name: pkgs."linuxPackages_${name}")
  );
  isThere =
    name:
    let
      version = builtins.tryEval (pkgs."linuxPackages_${name}".kernel.version or null);
      found = version.success && version.value != null;
    in
    found
    || warn "nixos-tests: nixpkgs has no linuxPackages_${name}, so no test runs on that kernel" false;
  prelude = builtins.readFile ../lib.py;

  # The value of `# NAME: VALUE` in the comment lines at the start of a scenario.
  marker =
    text: name: default:
    let
      lines = lib.splitString "\n" text;
      head = lib.take (lib.lists.findFirstIndex (
        line: !lib.hasPrefix "#" line
      ) (lib.length lines) lines) lines;
      values = lib.concatMap (
        line:
        let
          found = builtins.match "# *${name}: *(.*[^ ]) *" line;
        in
        lib.optionals (found != null) found
      ) head;
    in
    if values == [ ] then default else lib.last values;

  # As the runner reads them: `any`, or conditions such as `>= 5.15, < 6.7`.
  holds =
    version: condition:
    let
      found = builtins.match " *(>=|<=|==|>|<) *([0-9.]+) *" condition;
      order = builtins.compareVersions (lib.versions.majorMinor version) (lib.elemAt found 1);
    in
    if found == null then
      throw "the marker `kernels: ${condition}` is not understood; write any, or for example >= 5.15, < 6.7"
    else
      {
        ">=" = order >= 0;
        "<=" = order <= 0;
        "==" = order == 0;
        ">" = order > 0;
        "<" = order < 0;
      }
      .${lib.head found};
  fits = version: text: text == "any" || lib.all (holds version) (lib.splitString "," text);

  scenarios =
    lib.mapAttrs'
      (
        file: _:
        let
          text = builtins.readFile (../scenarios + "/${file}");
        in
        lib.nameValuePair (lib.removeSuffix ".py" file) {
          script = prelude + text;
          kernels = marker text "kernels" ">= 5.15";
          lsmOff = marker text "lsm" "on" == "off";
          # A NixOS machine has neither the test host nor the unit tests' binary.
          wanted =
            !lib.elem (marker text "needs" "agent") [
              "pluginhost"
              "unit-tests"
            ]
            && marker text "host" "any" != "debian";
          agent = marker text "needs" "agent" != "no-agent";
          nodes.machine = { };
        }
      )
      (
        lib.filterAttrs (file: type: type == "regular" && lib.hasSuffix ".py" file) (
          builtins.readDir ../scenarios
        )
      );

  # What only a NixOS machine, or more than one machine, can show.
  own = {
    nixos-module = {
      script = prelude + builtins.readFile ./module.py;
      nodes.machine = { lib, ... }: {
        # The module's defaults.
        services.nomad-driver-exec2.settings = lib.mkForce { };
      };
    };
    nixos-reboot = {
      script = prelude + builtins.readFile ./reboot.py;
      nodes.machine = { };
    };
    nixos-cluster = {
      script = builtins.readFile ./cluster.py;
      nodes = import ./cluster.nix;
    };
  };

  defaults = {
    kernels = ">= 5.15";
    lsmOff = false;
    wanted = true;
    agent = true;
  };

  test =
    name: scenario: kernel: packages:
    pkgs.testers.runNixOSTest {
      name = "exec2-${name}-linux-${kernel}";
      inherit (scenario) nodes;
      defaults = { lib, ... }: {
        imports = [
          module
          ./machine.nix
        ];
        boot.kernelPackages = packages;
        security.lsm = lib.mkIf scenario.lsmOff (lib.mkOverride 40 [ "yama" ]);
        # A scenario for a kernel with Landlock left out wants to hear what the driver says of it, not what the module says.
        assertions = lib.mkIf scenario.lsmOff (lib.mkOverride 40 [ ]);
        systemd.services.nomad.wantedBy = lib.mkIf (!scenario.agent) (lib.mkForce [ ]);
        virtualisation.memorySize = 2048;
        virtualisation.cores = 2;
        # Nomad reserves 300 MB for an allocation whose job asks for nothing else, and reliability_kills has up to 40 of them. The
        # image is sparse.
        virtualisation.diskSize = 16384;
      };
      testScript = scenario.script;
      # The scenarios share a prelude of which each uses a part, and nothing of them is typed.
      skipLint = true;
      skipTypeCheck = true;
      globalTimeout = 1800;
    };

  matrix = lib.cartesianProduct {
    scenario = lib.attrNames (scenarios // own);
    kernel = lib.attrNames kernels;
  };
in
lib.listToAttrs (
  lib.concatMap (
    { scenario, kernel }:
    let
      it = defaults // (scenarios // own).${scenario};
      packages = kernels.${kernel};
    in
    lib.optional (it.wanted && fits packages.kernel.version it.kernels) (
      lib.nameValuePair "vm-${lib.replaceStrings [ "_" ] [ "-" ] scenario}-linux-${kernel}" (
        test scenario it kernel packages
      )
    )
  ) matrix
)
