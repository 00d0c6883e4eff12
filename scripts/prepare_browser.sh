#!/usr/bin/env bash
# Installs what the browser tests need and pip does not bring: Chromium, a font with Chinese characters, axe-core.
# What is there is left alone. What cannot be installed is said here, and again by the tests that are skipped for it.
#
#   scripts/prepare_browser.sh FOLDER     axe-core goes to FOLDER
#   CHROMIUM=/path/to/chromium            the browser, if it is not on PATH
set -euo pipefail
axe_version=4.14.1
axe=$1

missing=()
command -v "${CHROMIUM:-chromium}" chromium-browser google-chrome >/dev/null || missing+=(chromium)
[ -n "$(fc-list :lang=zh 2>/dev/null)" ] || missing+=(fonts-wqy-zenhei)
command -v npm >/dev/null || missing+=(npm)
install() { # one package of Debian
  [ "$(id -u)" = 0 ] && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "$1" >/dev/null
}

# Debian's lists of packages may be old, or not there at all.
[ ${#missing[@]} = 0 ] || [ "$(id -u)" != 0 ] || apt-get -qq update || true
for package in "${missing[@]}"; do
  echo "installing $package with apt-get"
  install "$package" || echo "not installed (it takes root and apt-get): please install what does the work of $package" >&2
done
if [ "$(cat "$axe/version" 2>/dev/null)" != "$axe_version" ]; then
  { npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$axe" "axe-core@$axe_version" &&
    echo "$axe_version" >"$axe/version"; } || echo "npm could not install axe-core $axe_version" >&2
fi
