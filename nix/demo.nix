# The machine of `nix run .#demo`: Nomad, the driver and the example jobs, with a root shell on the console.
{
  lib,
  module,
}:
let
  demo =
    system:
    lib.nixosSystem {
      modules = [
        module
        ../nixos-tests/nixos/machine.nix
        {
          nixpkgs.hostPlatform = system;
          nixpkgs.config.allowUnfreePredicate = package: lib.getName package == "nomad";
          networking.hostName = "demo";
          services.getty.autologinUser = "root";
          environment.etc."demo-help".text = ''

            Nomad is starting; the example jobs are in /etc/exec2-examples.

              nomad node status -self
              nomad job run /etc/exec2-examples/env.nomad.hcl
              nomad job allocs env

            `poweroff` ends the machine.

          '';
          environment.loginShellInit = "cat /etc/demo-help";
          # Only `system.build.vm` is run, which has its own disk and boot loader; without these the system does not evaluate.
          fileSystems."/" = {
            device = "/dev/disk/by-label/nixos";
            fsType = "ext4";
          };
          boot.loader.grub.device = "/dev/vda";
          virtualisation.vmVariant.virtualisation = {
            memorySize = 2048;
            cores = 2;
            graphics = false;
          };
          system.stateVersion = "26.05";
        }
      ];
    };
in
{
  demo = demo "x86_64-linux";
  demo-aarch64 = demo "aarch64-linux";
}
