"""Runs scenarios that are written for the NixOS test driver on Debian guests under QEMU."""
