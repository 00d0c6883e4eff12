#!/usr/bin/env bash
# Installs what the browser tests need and pip does not bring: Chromium, a font with Chinese characters, axe-core.
# What is there is left alone. What cannot be installed is said here, and again by the tests that are skipped for it.
#
#   scripts/prepare_browser.sh FOLDER     axe-core goes to FOLDER
#   CHROMIUM=/path/to/chromium            the browser, where it is not on PATH
set -euo pipefail
axe_version=4.14.1
axe=$1

missing=()
command -v "${CHROMIUM:-chromium}" chromium-browser google-chrome >/dev/null || missing+=(chromium)
[ -n "$(fc-list :lang=zh 2>/dev/null)" ] || missing+=(fonts-wqy-zenhei)
command -v npm >/dev/null || missing+=(npm)
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing ${missing[*]} with apt-get"
  # Lists of packages may be old or not there at all.
  { [ "$(id -u)" = 0 ] && apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install --no-install-recommends "${missing[@]}" >/dev/null; } ||
    echo "not installed (it takes root and apt-get): please install what does the work of: ${missing[*]}" >&2
fi
if [ "$(cat "$axe/version" 2>/dev/null)" != "$axe_version" ]; then
  { npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$axe" "axe-core@$axe_version" &&
    echo "$axe_version" >"$axe/version"; } || echo "npm could not install axe-core $axe_version" >&2
fi
