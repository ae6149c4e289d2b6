"""What every server that speaks S3 has: what a client needs, and a client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import boto3
from botocore.config import Config


class S3Server(ABC):
    """A server on this machine with one user, who may do everything."""

    access_key: ClassVar[str]
    secret_key: ClassVar[str]

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """Its address, in plain ``http``."""

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to reach it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def client(self) -> Any:
        """A boto3 client: it shares no code with the store under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, max_pool_connections=32),
        )
