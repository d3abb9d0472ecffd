#!/bin/sh
# A CA of Tidegate's own, and what it signs: one certificate for etcd's members (for the addresses and names given), one
# for each client; etcd takes a client's Common Name for its user; and one for etcd's grpc-proxy, which may have none:
# whoever comes through it would be that user. And the key with which members sign the tokens of who logs in with a
# password (jwt.key). What exists already is kept: run it again for a certificate that was removed.
#
# usage: certificates.sh DIRECTORY ADDRESS-OR-NAME …
set -eu

[ $# -ge 2 ] || { echo "usage: $0 DIRECTORY ADDRESS-OR-NAME …" >&2; exit 2; }
directory=$1
shift
DAYS=${DAYS:-825}
umask 077
mkdir -p "$directory"
cd "$directory"

names="DNS:localhost,IP:127.0.0.1,IP:::1"
for name in "$@"; do
  case $name in
    *:*) names="$names,IP:$name" ;;
    *[!0-9.]*) names="$names,DNS:$name" ;;
    *) names="$names,IP:$name" ;;
  esac
done

new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }

if [ ! -e ca.crt ]; then
  new_key ca.key
  openssl req -x509 -new -key ca.key -days 3650 -subj "/CN=tidegate-etcd" -out ca.crt
fi

# issue NAME SUBJECT USAGE [SUBJECT-ALTERNATIVE-NAMES]
issue() {
  [ ! -e "$1.crt" ] || return 0
  new_key "$1.key"
  {
    echo "extendedKeyUsage=$3"
    echo "keyUsage=critical,digitalSignature"
    [ -z "${4:-}" ] || echo "subjectAltName=$4"
  } > "$1.extensions"
  openssl req -new -key "$1.key" -subj "$2" |
    openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days "$DAYS" -extfile "$1.extensions" -out "$1.crt" 2>/dev/null
  rm "$1.extensions"
}

issue member /CN=member serverAuth,clientAuth "$names"
issue proxy /O=tidegate-etcd-proxy serverAuth,clientAuth "$names"
for client in root endpoint-sync policy-sync node-agent; do
  issue "$client" "/CN=$client" clientAuth
done
[ -e jwt.key ] || new_key jwt.key
ls -1 ./*.crt
