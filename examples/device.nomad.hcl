# device: gives a task a device of the node, here a GPU.
#
# Shows: `device` in `resources`. Nomad chooses a node that has one and reserves it. The
#        task has the nodes that the device plugin names in its own /dev, beside the usual
#        ones, and the variables and files of the plugin.
# Agent: a device plugin, for GPUs of NVIDIA nomad-device-nvidia in `plugin_dir`. That
#        one names no nodes, only the variable NVIDIA_VISIBLE_DEVICES, so the job unveils
#        them. With a plugin that names them: `-var 'unveil=[]'`.
#
#   plugin "nomad-device-nvidia" {
#     config {
#       enabled = true
#     }
#   }
#   plugin "nomad-driver-exec2" {
#     config {
#       unveil_by_task = true
#     }
#   }
#
# `nomad node status -self` lists the devices of a node with the names that jobs write.
#
#   nomad alloc logs -job device     device files of the task, and its uid

variable "nodes" {
  type        = string
  default     = "/dev/nvidia0 /dev/nvidiactl"
  description = "Device files that the task shows."
}

variable "unveil" {
  type        = list(string)
  default     = ["rw:/dev/nvidia0", "rw:/dev/nvidiactl"]
  description = "Device files that the device plugin does not give."
}

job "device" {
  type = "batch"

  group "g" {
    task "show" {
      driver = "exec2"

      config {
        command = "sh"
        args    = ["-c", "ls -l ${var.nodes}; id -u"]
        unveil  = var.unveil
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
