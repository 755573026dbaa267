# Agent configuration for trying the examples. `make hack` starts a dev agent
# with it; for a real client see packaging/examples/exec2.hcl.

server {
  default_scheduler_config {
    # Lets the resources example have its memory_max.
    memory_oversubscription_enabled = true
  }
}

client {
  # Debian's and Ubuntu's place for the CNI plugins that the bridge example
  # needs (package containernetworking-plugins).
  cni_path = "/usr/lib/cni"

  options = {
    # Skip the probes for cloud metadata: outside a cloud each waits for a
    # time-out.
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
}

plugin "nomad-driver-exec2" {
  config {
    unveil_by_task = true
    allow_caps     = ["net_bind_service"]
  }
}
