# The program, the C library that it is linked with, and nothing else: no shell, no package manager. How to run it:
# docs/containers.md. `make test-container` builds it and runs it.

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /src
# What `backfilld_build_info` tells: the commit.
ARG REVISION=unknown
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    BACKFILLD_REVISION=$REVISION cargo build --release --locked --bin backfilld && \
    install -D target/release/backfilld /image/usr/bin/backfilld

# What the program needs of Debian: the libraries that it asks for, and the authorities that `ssl_root_cert = "system"`
# trusts. The licences and, where scanners look for them, the versions of what is taken.
WORKDIR /image
RUN set -eu; \
    ldd usr/bin/backfilld >/tmp/linked; \
    grep --only-matching '/[^ ]*' /tmp/linked >/tmp/libraries; \
    xargs --arg-file=/tmp/libraries cp --dereference --parents --target-directory=.; \
    cp --dereference --parents /etc/ssl/certs/ca-certificates.crt /etc/os-release .; \
    mkdir --parents var/lib/dpkg/status.d; \
    for package in libc6 libgcc-s1 ca-certificates; do \
        dpkg-query --status "$package" >"var/lib/dpkg/status.d/$package"; \
        cp --dereference --parents "/usr/share/doc/$package/copyright" .; \
    done; \
    install -D --mode 644 /src/LICENSE usr/share/doc/backfilld/copyright; \
    echo 'backfilld:x:65532:65532:backfilld:/nonexistent:/nonexistent' >etc/passwd; \
    echo 'backfilld:x:65532:' >etc/group; \
    echo 'hosts: files dns' >etc/nsswitch.conf

FROM scratch
LABEL org.opencontainers.image.title="backfilld" \
    org.opencontainers.image.description="Backfills large tables of a live PostgreSQL" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image /
# By number, so that Kubernetes can see that it is not root's (runAsNonRoot).
USER 65532:65532
EXPOSE 9797
STOPSIGNAL SIGTERM
# Whether it lives. Whether it reaches its database is `health --ready`: to start it again would not mend that.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/bin/backfilld", "health"]
ENTRYPOINT ["/usr/bin/backfilld"]
CMD ["run"]
