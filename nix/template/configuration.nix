# One machine that is Nomad's server and client. Add your hardware-configuration.nix.
{ lib, pkgs, ... }:
{
  # Nomad's licence is not free.
  nixpkgs.config.allowUnfreePredicate = package: lib.getName package == "nomad";

  services.nomad = {
    enable = true;
    settings = {
      server = {
        enabled = true;
        bootstrap_expect = 1;
      };
      client.enabled = true;
    };
    # On the PATH of tasks, unless a job sets its own.
    extraPackages = [ pkgs.bash ];
  };

  services.nomad-driver-exec2 = {
    enable = true;
    settings.unveil_by_task = true;
  };

  networking.hostName = "node";
  system.stateVersion = "26.05";
}
