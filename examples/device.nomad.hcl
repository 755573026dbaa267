# device: gives a task a device of the node, here a GPU.
#
# Shows: `device` in `resources`. Nomad chooses a node that has one and reserves it. The
#        task has the nodes that the device plugin names in its own /dev, beside the usual
#        ones, and the variables and files of the plugin. All other devices are denied.
# Agent: a device plugin, for GPUs of NVIDIA nomad-device-nvidia in `plugin_dir`:
#
#   plugin "nomad-device-nvidia" {
#     config {
#       enabled = true
#     }
#   }
#
# `nomad node status -self` lists the devices of a node with the names that jobs write.
#
#   nomad alloc logs -job device     device files of the task, and its uid

variable "nodes" {
  type        = string
  default     = "/dev/nvidia0 /dev/nvidiactl"
  description = "Device files that the device plugin gives."
}

job "device" {
  type = "batch"

  group "g" {
    task "show" {
      driver = "exec2"

      config {
        command = "sh"
        args    = ["-c", "ls -l ${var.nodes}; id -u"]
      }

      resources {
        cpu    = 100
        memory = 32

        device "nvidia/gpu" {
          count = 1
        }
      }
    }
  }
}
