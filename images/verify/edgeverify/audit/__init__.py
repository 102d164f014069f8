"""Verify an audit log of edgeserve, offline, with the public key of its device; see docs/audit.md.

It shares no code with what writes the log. For example:

    audit = verify_audit([Path("audit")], key)
    print(audit.last_line)
"""

from edgeverify.audit.chain import Audit, Mark, parse_mark, verify_audit

__all__ = ["Audit", "Mark", "parse_mark", "verify_audit"]
