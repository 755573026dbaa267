# A server and a client on machines of their own.
let
  # The addresses are those that the test network gives.
  agent = { config, lib, ... }: {
    services.nomad.settings = {
      bind_addr = lib.mkForce config.networking.primaryIPAddress;
      advertise = lib.mkForce { };
      client.network_interface = lib.mkForce "eth1";
    };
  };
in
{
  server = {
    imports = [ agent ];
    services.nomad.settings.client.enabled = false;
  };
  client = { nodes, ... }: {
    imports = [ agent ];
    services.nomad.settings = {
      server.enabled = false;
      client.servers = [ nodes.server.networking.primaryIPAddress ];
    };
  };
}
