"""Pulls an image as the kubelet does: PullImage of containerd's CRI, with the user name and password of
an imagePullSecret, or without.

    cri_pull.py SOCKET IMAGE [USER PASSWORD]

Prints the image's reference; an error of the pull goes to standard error. The two messages of the call
are written by hand (protobuf, wire format): strings and nested messages with one-byte tags.
"""

import sys

import grpc


def field(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def main() -> int:
    socket, image, *secret = sys.argv[1:]
    # PullImageRequest {ImageSpec image = 1 {string image = 1}; AuthConfig auth = 2}
    request = field(1, field(1, image.encode()))
    if secret:
        user, password = secret
        # AuthConfig {string username = 1; string password = 2}
        request += field(2, field(1, user.encode()) + field(2, password.encode()))
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        pull = channel.unary_unary("/runtime.v1.ImageService/PullImage")
        try:
            print(pull(request, timeout=120).decode(errors="replace").strip())
        except grpc.RpcError as error:
            print(error.details(), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
