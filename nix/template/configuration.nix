# One machine that is both Nomad server and client.
{ lib, pkgs, ... }:
{
  # Nomad's licence is not free.
  nixpkgs.config.allowUnfreePredicate = package: lib.getName package == "nomad";

  # For UEFI; with a BIOS use boot.loader.grub.device = "/dev/sda".
  boot.loader.systemd-boot.enable = true;
  boot.loader.efi.canTouchEfiVariables = true;

  services.nomad = {
    enable = true;
    settings = {
      server = {
        enabled = true;
        bootstrap_expect = 1;
      };
      client = {
        enabled = true;
        # For `network { mode = "bridge" }`, together with boot.kernelModules below.
        cni_path = "${pkgs.cni-plugins}/bin";
      };
    };
    # On the PATH of tasks, unless a job sets PATH.
    extraPackages = [ pkgs.bash ];
  };
  # Nomad looks for the module among the loaded ones.
  boot.kernelModules = [ "bridge" ];

  services.nomad-driver-exec2 = {
    enable = true;
    settings.unveil_by_task = true;
  };

  networking.hostName = "node";
  system.stateVersion = "26.05";
}
