{
  description = "A NixOS machine that runs Nomad with the exec2 driver";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    # Where you have the driver from: a fork, a mirror, or a path.
    nomad-driver-exec2.url = "github:OWNER/nomad-driver-exec2";
    nomad-driver-exec2.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    { nixpkgs, nomad-driver-exec2, ... }:
    {
      nixosConfigurations.node = nixpkgs.lib.nixosSystem {
        system = "x86_64-linux";
        modules = [
          nomad-driver-exec2.nixosModules.default
          ./configuration.nix
        ];
      };
    };
}
