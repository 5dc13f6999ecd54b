"""pika's BlockingConnection does what `bench contend` has the other libraries do."""

import os
import sys
import time

import pika


def main():
    work, *settings = sys.argv[1:]
    job = {"queue": "bench", "count": "1000", "size": "16", "prefetch": "1"}
    job.update(setting.split("=", 1) for setting in settings)
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    channel = connection.channel()
    channel.queue_declare(job["queue"], durable=True)
    seconds = {"publish": publish, "consume": consume}[work](channel, job, int(job["count"]))
    connection.close()
    print(f"seconds={seconds:.6f}")


def publish(channel, job, count):
    """Waits for each confirm: this connection has no other way."""
    channel.confirm_delivery()
    persistent = pika.BasicProperties(delivery_mode=2)
    body = b"x" * int(job["size"])
    begun = time.monotonic()
    for _ in range(count):
        channel.basic_publish("", job["queue"], body, persistent)
    return time.monotonic() - begun


def consume(channel, job, count):
    channel.basic_qos(prefetch_count=int(job["prefetch"]))
    seen = 0
    for method, _, _ in channel.consume(job["queue"]):
        seen += 1
        if seen == 1:
            begun = time.monotonic()
        if seen == count:
            ended = time.monotonic()
        channel.basic_ack(method.delivery_tag)
        if seen == count:
            break
    return ended - begun


main()
