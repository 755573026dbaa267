# Agent configuration for trying the examples. `make hack` starts a dev agent
# with it; for a real client see packaging/examples/exec2.hcl.

server {
  default_scheduler_config {
    # For the memory_max of the example `resources`.
    memory_oversubscription_enabled = true
  }
}

client {
  # Where Debian and Ubuntu install the CNI plugins that the example `bridge`
  # needs (package containernetworking-plugins).
  cni_path = "/usr/lib/cni"

  options = {
    # Skip the probes for cloud metadata: outside a cloud each of them times
    # out.
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
}

plugin "nomad-driver-exec2" {
  config {
    unveil_by_task = true
    allow_caps     = ["net_bind_service"]
  }
}
