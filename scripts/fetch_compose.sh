#!/usr/bin/env bash
# If `docker compose` is missing: take Debian's plugin for it, without installing a package. Ends well in any case,
# and says so if there is no compose; the tests that need it are skipped then.
set -euo pipefail
docker compose version >/dev/null 2>&1 && exit 0
docker info >/dev/null 2>&1 || exit 0
sources=/etc/apt/sources.list.d/debian.sources
if ! command -v apt-get >/dev/null || ! [ -f "$sources" ]; then
    echo 'docker compose is not here and cannot be fetched: compose.yaml is NOT tested' >&2
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work"/{lists,cache/archives}/partial "$work/unpacked"
mirror=$(awk '/^URIs:/ {print $2; exit}' "$sources")
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$work/trixie.list"
apt=(apt-get -qq -o Dir::Etc::sourcelist="$work/trixie.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/lists"
    -o Dir::Cache="$work/cache")
if ! (cd "$work" && "${apt[@]}" update && "${apt[@]}" download docker-compose) 2>"$work/log"; then
    tail -1 "$work/log" >&2
    echo 'docker compose is not here and cannot be fetched: compose.yaml is NOT tested' >&2
    exit 0
fi
dpkg-deb -x "$work"/docker-compose_*.deb "$work/unpacked"
plugins=${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins
mkdir -p "$plugins"
cp "$work/unpacked/usr/libexec/docker/cli-plugins/docker-compose" "$plugins/"
docker compose version
