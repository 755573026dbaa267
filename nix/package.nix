# The plugin, for callPackage of any package set: static with pkgsStatic, dynamic with pkgs.
{
  lib,
  rustPlatform,
  stdenv,
  installShellFiles,
  versionCheckHook,
  # The flake runs the tests as a separate check, so that they run once.
  doCheck ? true,
}:
let
  manifest = lib.importTOML ../Cargo.toml;
in
rustPlatform.buildRustPackage (
  {
    pname = manifest.package.name;
    inherit (manifest.package) version;

    # Files that cargo reads, and those that are installed or tested with it: an edit elsewhere causes no rebuild.
    src = lib.fileset.toSource {
      root = ../.;
      fileset = lib.fileset.unions [
        ../Cargo.toml
        ../Cargo.lock
        ../build.rs
        ../clippy.toml
        ../deny.toml
        ../rustfmt.toml
        ../proto
        ../goplugin
        ../src
        (lib.fileset.fileFilter (file: file.hasExt "rs") ../bench)
        (lib.fileset.fileFilter (file: file.hasExt "rs") ../tests)
        ../fuzz/seeds
        ../tests/messages.txt
        ../tests/fixtures
        # Tests compare these with the table of options.
        ../README.md
        ../docs/nixos.md
        ../docs/security.md
        ./module.nix
        (lib.fileset.fileFilter (file: file.hasExt "hcl") ../examples)
        ../packaging/completions
        ../packaging/examples
        ../packaging/nomad-driver-exec2.8
      ];
    };
    cargoLock.lockFile = ../Cargo.lock;

    nativeBuildInputs = [ installShellFiles ];

    # nixpkgs' cargo hook overrides `strip` of Cargo.toml, and by default stdenv removes only debug information.
    stripAllList = [ "bin" ];

    inherit doCheck;
    # An optimised build for the tests would be a second full build.
    checkType = "debug";

    postInstall = ''
      installManPage packaging/nomad-driver-exec2.8
      installShellCompletion packaging/completions/*
      install -D -m 644 -t $out/share/doc/nomad-driver-exec2/examples packaging/examples/exec2.hcl examples/*.hcl
    '';

    nativeInstallCheckInputs = [ versionCheckHook ];
    doInstallCheck = true;

    meta = {
      inherit (manifest.package) description;
      license = lib.licenses.mpl20;
      mainProgram = manifest.package.name;
      platforms = lib.platforms.linux;
      maintainers = [ ];
    }
    # Cargo.toml has no homepage until there is a public address.
    // lib.optionalAttrs (manifest.package ? homepage) {
      inherit (manifest.package) homepage;
      changelog = "${manifest.package.homepage}/blob/v${manifest.package.version}/CHANGELOG.md";
    };
  }
  # The static plugin also runs on machines without a Nix store.
  // lib.optionalAttrs stdenv.hostPlatform.isStatic { allowedReferences = [ ]; }
)
