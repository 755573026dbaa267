{
  description = "Nomad task driver that runs host programs in a Landlock and cgroups v2 sandbox";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      eachSystem = f: lib.genAttrs systems (system: f system nixpkgs.legacyPackages.${system});
      # Nomad's licence is not free. Only tests that boot Nomad use this package set.
      withNomad =
        system:
        import nixpkgs {
          inherit system;
          config.allowUnfreePredicate = package: lib.getName package == "nomad";
        };
      module = self.nixosModules.default;
      vmTests =
        system:
        import ./nixos-tests/nixos {
          inherit lib module;
          pkgs = withNomad system;
        };
      # The VM tests among the checks: one scenario of each kind, on the kernel that nixpkgs always has.
      someVmTests = map (name: "vm-${name}-linux-latest") [
        "examples"
        "isolation"
        "lifecycle"
        "nixos-module"
        "process"
      ];
    in
    {
      packages = eachSystem (
        system: pkgs:
        import ./nix/packages.nix {
          inherit lib pkgs;
          tests = vmTests system;
        }
      );

      overlays.default = final: _: {
        nomad-driver-exec2 = final.pkgsStatic.callPackage ./nix/package.nix { };
      };

      nixosModules.default =
        { pkgs, ... }:
        {
          # Lets a configuration import the module more than once.
          key = "${self}/flake.nix#nixosModules.default";
          _file = "${self}/flake.nix";
          imports = [ ./nix/module.nix ];
          services.nomad-driver-exec2.package =
            lib.mkDefault
              self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        };

      nixosConfigurations = import ./nix/demo.nix { inherit lib module; };

      checks = eachSystem (
        system: pkgs:
        import ./nix/checks.nix {
          inherit
            lib
            pkgs
            module
            system
            ;
          packages = self.packages.${system};
          docs = import ./nix/docs.nix { inherit lib pkgs; };
          tests = vmTests system;
        }
        // lib.getAttrs someVmTests (vmTests system)
      );

      # Every scenario on every kernel: too many machines for `nix flake check`.
      legacyPackages = eachSystem (system: _: { vmTests = vmTests system; });

      apps = eachSystem (
        system: pkgs:
        import ./nix/apps.nix {
          inherit
            lib
            pkgs
            self
            system
            ;
          docs = import ./nix/docs.nix { inherit lib pkgs; };
        }
      );

      devShells = eachSystem (
        _: pkgs: {
          default = import ./nix/shell.nix { inherit pkgs; };
        }
      );

      formatter = eachSystem (_: pkgs: pkgs.nixfmt-tree);

      templates.default = {
        path = ./nix/template;
        description = "A NixOS machine that runs Nomad with the exec2 driver";
      };
    };
}
