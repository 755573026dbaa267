# The module's defaults.
{
  machine = { lib, ... }: {
    services.nomad-driver-exec2.settings = lib.mkForce { };
  };
}
