# All packages of the flake. Those for this platform share one static build of the plugin.
{
  lib,
  pkgs,
  # All VM tests, by name.
  tests,
}:
let
  plugin = callPackage: callPackage ./package.nix { doCheck = false; };
  static = (plugin pkgs.pkgsStatic.callPackage).overrideAttrs (old: {
    passthru = old.passthru or { } // {
      inherit tests;
    };
  });
  distribution =
    package:
    import ./distribution.nix {
      inherit lib pkgs package;
    };
  cross = plugin pkgs.pkgsCross.aarch64-multiplatform-musl.pkgsStatic.callPackage;
  native = distribution static;
in
{
  default = static;
  nomad-driver-exec2 = static;
  nomad-driver-exec2-dynamic = plugin pkgs.callPackage;
  inherit (native) deb rpm release;
}
// lib.optionalAttrs pkgs.stdenv.hostPlatform.isx86_64 (
  lib.mapAttrs' (name: lib.nameValuePair "${name}-aarch64") {
    nomad-driver-exec2 = cross;
    inherit (distribution cross) deb rpm release;
  }
)
