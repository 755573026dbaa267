{
  description = "A NixOS machine that runs Nomad with the exec2 driver";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    # Replace OWNER, or the whole address: a fork, a mirror, path:/a/checkout.
    nomad-driver-exec2.url = "github:OWNER/nomad-driver-exec2";
    nomad-driver-exec2.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    { nixpkgs, nomad-driver-exec2, ... }:
    {
      nixosConfigurations.node = nixpkgs.lib.nixosSystem {
        modules = [
          nomad-driver-exec2.nixosModules.default
          # Disks and platform of this machine: nixos-generate-config --show-hardware-config > hardware-configuration.nix
          ./hardware-configuration.nix
          ./configuration.nix
        ];
      };
    };
}
