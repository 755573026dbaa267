# Everything that the Makefile's targets call.
{ pkgs, package }:
pkgs.mkShell {
  inputsFrom = [ package ];
  packages = [
    pkgs.cargo
    pkgs.cargo-deny
    pkgs.clippy
    pkgs.go
    pkgs.nfpm
    pkgs.nixfmt-tree
    pkgs.python3
    pkgs.rust-analyzer
    pkgs.rustc
    pkgs.rustfmt
    pkgs.shellcheck
  ];
}
