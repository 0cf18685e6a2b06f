# shellcheck shell=bash
# Installs Debian packages for tests without starting their services, now or at boot.

POLICY=/usr/sbin/policy-rc.d

# The links by which systemd and sysvinit start services at boot.
boot_links() {
  find /etc/systemd/system -path '*.wants/*' -type l 2>/dev/null
  find /etc/systemd/system -path '*.requires/*' -type l 2>/dev/null
  find /etc/rc[0-9S].d -name 'S*' -type l 2>/dev/null
}

# Removes the links that an installation has added. What was enabled before stays enabled.
disable_new_services() {
  local before=$1 link
  while IFS= read -r link; do
    case $link in
      # Turned into a K link, so that an upgrade of the package doesn't make it again.
      /etc/rc*) update-rc.d "$(basename "$link" | cut -c4-)" disable >/dev/null 2>&1 || rm -f "$link" ;;
      *) rm -f "$link" ;;
    esac
  done < <(comm -13 <(printf '%s\n' "$before" | sort) <(boot_links | sort))
}

# apt_install PACKAGE...: in a subshell, so that its traps are its own.
apt_install() (
  before=$(boot_links)
  # Debian's tools ask this program before they start a service; 101 is no.
  if [ ! -e "$POLICY" ]; then
    trap 'rm -f "$POLICY"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
  fi
  status=0
  DEBIAN_FRONTEND=noninteractive timeout 300 \
    apt-get install -y -qq --no-install-recommends "$@" || status=$?
  # Also after a failure: some of the packages may be there.
  disable_new_services "$before"
  exit "$status"
)
