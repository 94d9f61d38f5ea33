"""botocore against an S3 server: its pool of connections, its retries, large objects."""

import io
import os

import botocore.config
import botocore.exceptions
import botocore.session
import pytest
from control import accepted, cut


def make_client(host="s3.mesh:8003", **more):
    config = botocore.config.Config(s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=10, **more)
    return botocore.session.Session().create_client(
        "s3", "us-east-1", endpoint_url=f"http://{host}", aws_access_key_id="key", aws_secret_access_key="secret", config=config
    )


def check_objects():
    before = accepted("s3")
    client = make_client()
    client.create_bucket(Bucket="bucket")
    body = os.urandom(10_000_000)
    client.put_object(Bucket="bucket", Key="large", Body=io.BytesIO(body))
    assert client.get_object(Bucket="bucket", Key="large")["Body"].read() == body
    assert [entry["Key"] for entry in client.list_objects_v2(Bucket="bucket")["Contents"]] == ["large"]
    assert accepted("s3") == before + 1
    assert cut("s3") == 1
    assert client.head_object(Bucket="bucket", Key="large")["ContentLength"] == len(body)
    assert accepted("s3") == before + 2


def check_errors():
    for host in ("nobody.mesh", "s3.mesh:1"):
        with pytest.raises(botocore.exceptions.EndpointConnectionError):
            make_client(host, retries={"total_max_attempts": 1}).list_buckets()
