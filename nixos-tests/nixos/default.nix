# The scenarios of ../scenarios and of this folder as NixOS tests, each on each kernel: vm-NAME-linux-6_12. The heads of the files
# say what they are for; nixos-tests/run reads the same heads, and boots Debian's kernels.
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

  # The head: TOML in comment lines between two marks at the start of the file.
  headOf =
    file:
    let
      lines = lib.splitString "\n" (builtins.readFile file);
      end = lib.lists.findFirstIndex (
        line: line == "# ///"
      ) (throw "${toString file}: the head has no end") lines;
      own = builtins.fromTOML (
        lib.concatMapStringsSep "\n" (lib.removePrefix "#") (lib.sublist 1 (end - 1) lines)
      );
      unknown = lib.attrNames (removeAttrs own ([ "description" ] ++ lib.attrNames defaults));
    in
    assert lib.assertMsg (lib.head lines == "# /// scenario") "${toString file} starts with no head";
    assert lib.assertMsg (
      unknown == [ ]
    ) "${toString file}: not supported in a head: ${toString unknown}";
    defaults // own // { packages = defaults.packages // own.packages or { }; };
  defaults = builtins.fromTOML (builtins.readFile ../scenarios/defaults.toml);

  # The scenarios' library, and the lines in front of each scenario that make it importable and give it the test driver's names.
  library = builtins.path {
    path = ../lib;
    name = "exec2-scenario-library";
    filter = path: _: baseNameOf path != "__pycache__";
  };
  prelude = ''
    import sys
    sys.path.insert(0, "${library}")
    from exec2 import guest
    guest.bind(globals())
  '';

  # As the runner reads them: `any`, or conditions such as `>= 5.15, < 6.7`.
  holds =
    version: condition:
    let
      found = builtins.match " *(>=|<=|==|>|<) *([0-9.]+) *" condition;
      order = builtins.compareVersions (lib.versions.majorMinor version) (lib.elemAt found 1);
    in
    if found == null then
      throw "kernels = ${condition} is not supported; write any, or for example >= 5.15, < 6.7"
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

  # The *.py of a folder, by name.
  scenariosOf =
    folder: more:
    lib.mapAttrs'
      (
        file: _:
        let
          name = lib.removeSuffix ".py" file;
          path = folder + "/${file}";
        in
        lib.nameValuePair name (headOf path // { script = prelude + builtins.readFile path; } // more name)
      )
      (
        lib.filterAttrs (file: type: type == "regular" && lib.hasSuffix ".py" file) (
          builtins.readDir folder
        )
      );

  shared = scenariosOf ../scenarios (_: {
    nodes.machine = { };
  });
  # What only a NixOS machine, or more than one machine, can show: NAME.nix beside NAME.py has the machines.
  own = lib.mapAttrs' (name: lib.nameValuePair "nixos-${name}") (
    scenariosOf ./. (
      name:
      let
        nodes = ./. + "/${name}.nix";
      in
      {
        nodes = if builtins.pathExists nodes then import nodes else { machine = { }; };
      }
    )
  );
  scenarios = lib.filterAttrs (_: scenario: lib.elem "nixos" scenario.guests) (shared // own);

  test =
    name: scenario: kernel: packages:
    let
      lsmOff = scenario.lsm == "off";
    in
    pkgs.testers.runNixOSTest {
      name = "exec2-${name}-linux-${kernel}";
      inherit (scenario) nodes;
      defaults = { lib, pkgs, ... }: {
        imports = [
          module
          ./machine.nix
        ];
        boot.kernelPackages = packages;
        security.lsm = lib.mkIf lsmOff (lib.mkOverride 40 [ "yama" ]);
        # A scenario for a kernel with Landlock left out expects the driver's message, not the module's assertion.
        assertions = lib.mkIf lsmOff (lib.mkOverride 40 [ ]);
        systemd.services.nomad.wantedBy = lib.mkIf (scenario.nomad == "none") (lib.mkForce [ ]);
        # By name, so that a package set without one of them still evaluates, and only the scenario that needs it fails.
        environment.systemPackages = lib.filter (package: package != null) (
          map (package: pkgs.${package} or null) scenario.packages.nix
        );
        virtualisation.memorySize = scenario.memory_mib;
        virtualisation.cores = 2;
        # Nomad reserves 300 MB for an allocation whose job asks for nothing else, and reliability_kills has up to 40 of them. The
        # image is sparse.
        virtualisation.diskSize = 16384;
      };
      testScript = scenario.script;
      # `make lint-code` checks the scenarios and their library, with the types of the test driver's API.
      skipLint = true;
      skipTypeCheck = true;
      globalTimeout = scenario.timeout_s;
      passthru = { inherit (scenario) script; };
    };

  matrix = lib.cartesianProduct {
    scenario = lib.attrNames scenarios;
    kernel = lib.attrNames kernels;
  };
in
lib.listToAttrs (
  lib.concatMap (
    { scenario, kernel }:
    let
      it = scenarios.${scenario};
      packages = kernels.${kernel};
    in
    lib.optional (fits packages.kernel.version it.kernels) (
      lib.nameValuePair "vm-${lib.replaceStrings [ "_" ] [ "-" ] scenario}-linux-${kernel}" (
        test scenario it kernel packages
      )
    )
  ) matrix
)
