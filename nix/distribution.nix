# Packages for other systems, made from a static build by the same script as outside Nix.
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

  # cargo lists the linked crates, so it needs them and the sources from which the plugin was built.
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
      unset SOURCE_DATE_EPOCH # use the date of the changelog
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
        # Nix sets this variable, which would override the date of the changelog.
        unset SOURCE_DATE_EPOCH
        bash ${files}/scripts/package --plugin ${package}/bin/nomad-driver-exec2 --inventory ${inventory} \
          --arch ${arch} --out $out ${formats}
      '';
in
{
  deb = pack "deb" "deb";
  rpm = pack "rpm" "rpm";
  # The files of a release.
  release = pack "release" "tar deb rpm sums";
}
