# An image with the static program and the authorities for TLS, and nothing else: docker build -t rabbit-work .
# Commands that work on tasks need an image of their own: COPY --from=rabbit-work /usr/bin/ /usr/bin/
FROM rust:1-alpine AS build
RUN apk add --no-cache ca-certificates gcc musl-dev
WORKDIR /build
COPY . .
RUN cargo build --locked --release --bin rabbit-work \
    && mkdir -p /image/usr/bin /image/etc/ssl/certs /image/tmp \
    && cp target/release/rabbit-work /image/usr/bin/ \
    && ln -s rabbit-work /image/usr/bin/producer \
    && ln -s rabbit-work /image/usr/bin/worker \
    && ln -s rabbit-work /image/usr/bin/queuectl \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
    && chmod 1777 /image/tmp

FROM scratch
COPY --from=build /image/ /
# Nobody: a number, because the image has no /etc/passwd.
USER 65534:65534
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/rabbit-work"]
