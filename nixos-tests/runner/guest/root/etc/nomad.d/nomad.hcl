# One machine that is server and client, reached from inside the guest only.
data_dir  = "/opt/nomad/data"
bind_addr = "127.0.0.1"

# without it a loopback address is refused outside dev mode
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}

server {
  enabled          = true
  bootstrap_expect = 1
  raft_multiplier  = 1

  default_scheduler_config {
    memory_oversubscription_enabled = true
  }
}

client {
  enabled           = true
  network_interface = "eth0"
  cni_path          = "/usr/lib/cni"

  # 2 cores of 2000 MHz whatever the host has, so that a task's `cpu` is the same share everywhere
  cpu_total_compute = 4000

  options = {
    "driver.allowlist"     = "exec2"
    "fingerprint.denylist" = "env_aws,env_azure,env_gce,env_digitalocean"
  }
}

telemetry {
  # without it Nomad 2.0 collects no statistics of tasks
  publish_allocation_metrics = true
}

plugin "nomad-driver-exec2" {
  config {
    unveil_by_task = true
    unveil_paths   = ["r:/etc/mime.types"]
    allow_caps     = ["net_bind_service"]
  }
}
