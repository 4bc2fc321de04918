#!/bin/sh
# Makes the certificate of the tests anew: signed by itself, for localhost and 127.0.0.1, for a hundred years.
cd "$(dirname "$0")" || exit 1
exec openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 \
    -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
    -addext keyUsage=critical,digitalSignature,keyCertSign -keyout server.key -out server.pem
