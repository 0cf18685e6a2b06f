# The container image: the program, its shared libraries, CA certificates and a configuration; no shell
# and no packages. It runs as user 65532.
#
#   docker build -t millpond .
#   docker run -p 5000:5000 -v millpond:/var/lib/millpond millpond
#
# With ROOTFS=prebuilt, the context is a directory that deploy/image/rootfs has made of a binary;
# nothing is compiled or pulled.
ARG ROOTFS=compiled

FROM docker.io/library/rust:1.95-bookworm AS compiled
WORKDIR /src
COPY . .
# The commit that `millpond --version` names; the context has no repository.
ARG MILLPOND_COMMIT=
RUN cargo build --locked --release --bin millpond \
 && deploy/image/rootfs target/release/millpond /image

FROM scratch AS prebuilt
COPY . /image

FROM ${ROOTFS} AS rootfs

FROM scratch
COPY --from=rootfs /image/root/ /
COPY --from=rootfs --chown=65532:65532 /image/data /var/lib/millpond
ENV REGISTRY_CONFIGURATION_PATH=/etc/millpond/config.yml
USER 65532:65532
EXPOSE 5000
VOLUME /var/lib/millpond
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=20s --start-period=30s CMD ["/usr/bin/millpond", "health"]
ENTRYPOINT ["/usr/bin/millpond"]
CMD ["serve"]
