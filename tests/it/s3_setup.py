"""Puts a folder of logs into a bucket as Cloudflare would have, beside what is no log; and makes an empty lake bucket."""

import pathlib
import sys

import boto3

endpoint, folder = sys.argv[1], pathlib.Path(sys.argv[2])
s3 = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")
s3.create_bucket(Bucket="logs")
s3.create_bucket(Bucket="lake")
for path in sorted(folder.rglob("*.gz")):
    s3.put_object(Bucket="logs", Key=f"in/{path.relative_to(folder)}", Body=path.read_bytes())
s3.put_object(Bucket="logs", Key="in/ownership-challenge.txt", Body=b"eyJhbGciOi.eyJvYmplY3Q.c2lnbmF0dXJl")
s3.put_object(Bucket="logs", Key="in/empty.log.gz", Body=b"")
