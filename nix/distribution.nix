# Packages of other systems, made of a static build by the same script as outside Nix.
{
  lib,
  pkgs,
  package,
}:
let
  inherit (package.stdenv) hostPlatform;
  arch = hostPlatform.go.GOARCH;
  target = hostPlatform.rust.rustcTarget;
  inherit (package) version;

  # cargo's own word on what is linked, hence with the crates at hand. It reads the sources that the plugin was built of.
  inventory = pkgs.stdenvNoCC.mkDerivation {
    pname = "nomad-driver-exec2-inventory-${arch}";
    inherit version;
    inherit (package) src cargoDeps;
    nativeBuildInputs = [
      pkgs.cargo
      pkgs.rustc
      pkgs.python3
      pkgs.rustPlatform.cargoSetupHook
    ];
    env.CARGO_NET_OFFLINE = "true";
    buildPhase = ''
      runHook preBuild
      unset SOURCE_DATE_EPOCH # the changelog's
      cp -r --no-preserve=mode ${tools}/. .
      python3 packaging/inventory.py ${target} $out
      runHook postBuild
    '';
    dontInstall = true;
    dontFixup = true;
  };
  tools = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../CHANGELOG.md
      ../packaging/changelog.py
      ../packaging/inventory.py
    ];
  };
  files = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../CHANGELOG.md
      ../Cargo.toml
      ../LICENSE
      ../README.md
      (lib.fileset.fileFilter (file: file.hasExt "md" || file.hasExt "svg") ../docs)
      (lib.fileset.fileFilter (file: file.hasExt "hcl") ../examples)
      ../packaging
      ../scripts/package
    ];
  };
  pack =
    name: formats:
    pkgs.runCommand "nomad-driver-exec2-${name}-${arch}-${version}"
      {
        nativeBuildInputs = [
          pkgs.nfpm
          pkgs.python3
        ];
        passthru = { inherit inventory; };
        meta = {
          inherit (package.meta) description license platforms;
        };
      }
      ''
        # The script takes the time from the changelog; Nix' own would go before.
        unset SOURCE_DATE_EPOCH
        bash ${files}/scripts/package --plugin ${package}/bin/nomad-driver-exec2 --inventory ${inventory} \
          --arch ${arch} --out $out ${formats}
      '';
in
{
  deb = pack "deb" "deb";
  rpm = pack "rpm" "rpm";
  # What a release page has.
  release = pack "release" "tar deb rpm sums";
}
