"""The guards that ``tests/mutations.py`` removes, each with the tests that must then fail.

A guard is what a MUST of ``format/SPEC.md`` or a promise of README and docs rests on. Whoever adds
one adds its mutation here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One guard, and how to remove it.

    Attributes:
        name: Names it in tables and for choosing it.
        promise: What rests on it: where it is written (a section of SPEC.md, a page, a module) and
            what it says.
        file: The module, below ``tierstore/``.
        old: The source text to replace; it is in the file exactly once.
        new: What to put there.
        tests: Ids of tests below ``tests/`` that must all fail then; of a test with parameters one
            case that fails is enough.
    """

    name: str
    promise: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_FORMAT = (
    Mutation(
        "record-that-its-reader-refuses",
        "SPEC 5: A writer MUST NOT write a body that a reader would refuse or read otherwise.",
        "format/readback.py",
        "read = form.decode(data, type=prepared(kind))",
        "read = value",
        (
            "unit/test_format_records.py::test_a_wrong_field_is_named",
            "unit/test_format_records.py::test_whatever_is_accepted_is_read_back",
            "unit/test_arguments.py::test_what_is_no_message",
        ),
    ),
    Mutation(
        "record-that-is-read-as-another",
        "SPEC 5: A writer MUST NOT write a body that a reader would refuse or read otherwise.",
        "format/readback.py",
        "if read != value:",
        "if False:",
        ("unit/test_format_records.py::test_a_wrong_field_is_named",),
    ),
    Mutation(
        "record-beyond-its-types",
        "SPEC 5: A writer MUST NOT write a body that a reader would refuse or read otherwise.",
        "format/sealed.py",
        """        body.check()
        return plain
""",
        """        return plain
""",
        ("unit/test_format_records.py::test_what_contradicts_itself_is_not_written",),
    ),
    Mutation(
        "table-that-its-reader-refuses",
        "SPEC 5: A writer MUST NOT write a body that a reader would refuse or read otherwise.",
        "format/table.py",
        "ChunkTable.__new__(ChunkTable)._fill(body, own)",
        "pass",
        ("unit/test_format_records.py::test_a_table_that_contradicts_itself_is_not_written",),
    ),
    Mutation(
        "frame-head-checksum",
        "SPEC 3: A reader MUST check the head's xxh3.",
        "format/frame.py",
        "if _SUM.unpack_from(view, head_bytes - _SUM.size)[0] != xxh3(view[: -_SUM.size]):",
        "if False:",
        ("unit/test_format_frame.py::test_damage_is_refused[head checksum]",),
    ),
    Mutation(
        "frame-of-another-chunk",
        "SPEC 3: A reader MUST check that the head's digest is the one it wants.",
        "format/frame.py",
        "if digest is not None and found != digest:",
        "if False:",
        ("unit/test_format_frame.py::test_the_digest_in_the_head_is_the_one_that_is_wanted",),
    ),
    Mutation(
        "frame-payload-checksum",
        "SPEC 3: A reader of the whole chunk MUST then check the payload's xxh3.",
        "format/frame.py",
        "if xxh3(payload) != head.payload_xxh3:",
        "if False:",
        ("unit/test_format_frame.py::test_the_payload_is_checked",),
    ),
    Mutation(
        "frame-flags",
        "SPEC 3: a set bit that the reader does not know is refused.",
        "format/frame.py",
        "if flags or key_id:",
        "if False:",
        ("unit/test_format_frame.py::test_what_is_newer_is_refused",),
    ),
    Mutation(
        "frame-limits-before-allocation",
        "SPEC 1: A limit MUST be checked before memory is allocated for what it limits.",
        "format/frame.py",
        "if plain_bytes > MAX_PLAIN_BYTES or payload_bytes > plain_bytes:",
        "if payload_bytes > plain_bytes:",
        ("unit/test_format_frame.py::test_damage_is_refused[plain_bytes above the limit]",),
    ),
    Mutation(
        "frame-base-pieces-add-up",
        "SPEC 3: The lengths of the base pieces MUST add up to plain_bytes.",
        "format/frame.py",
        "if pieces and sum(piece.plain_bytes for piece in pieces) != plain_bytes:",
        "if False:",
        ("unit/test_format_frame.py::test_damage_is_refused[bases do not add up]",),
    ),
    Mutation(
        "frame-ends-rise",
        "SPEC 3: Ends MUST NOT decrease and the last MUST equal payload_bytes.",
        "format/frame.py",
        "if not rising or (ends[-1] if ends else 0) != payload_bytes:",
        "if False:",
        ("unit/test_format_frame.py::test_damage_is_refused[ends decrease]",),
    ),
    Mutation(
        "chunk-digest",
        "SPEC 3: A reader of the whole chunk MUST check the digest of the plain bytes.",
        "modelstore/chunks/decode.py",
        "if digest_of(plain).raw != head.digest:",
        "if False:",
        (
            "integration/test_forged_frames.py::"
            "test_a_frame_with_right_checksums_of_other_bytes_is_damaged",
        ),
    ),
    Mutation(
        "block-checksum",
        "SPEC 3.2: Without a proof, each block's plain xxh3 MUST be checked.",
        "modelstore/chunks/decode.py",
        "elif xxh3(out) != head.sums[index]:",
        "elif False:",
        (
            "integration/test_forged_frames.py::"
            "test_a_row_of_a_block_that_does_not_match_its_checksum_is_damaged",
        ),
    ),
    Mutation(
        "proof-gives-the-digest",
        "SPEC 3.2: A reader of some blocks MUST check that the values give the chunk's digest.",
        "format/proof.py",
        "if _native.root(proof) != head.digest:",
        "if False:",
        (
            "unit/test_format_proof.py::test_values_that_do_not_give_the_digest_are_refused",
            "integration/test_forged_parts.py::test_a_forged_part_is_refused",
        ),
    ),
    Mutation(
        "proof-of-as-many-blocks",
        "SPEC 3.2: A reader of some blocks MUST check that there are as many values as blocks.",
        "format/proof.py",
        "if own.codec != RAW or own.plain_bytes != VALUE_BYTES * len(head.ends):",
        "if False:",
        ("unit/test_format_proof.py::test_the_top_values_are_no_proof_of_more_blocks",),
    ),
    Mutation(
        "block-of-the-digest",
        "SPEC 3.2: A reader of some blocks MUST check that each has its chaining value.",
        "format/proof.py",
        "if value != proof[VALUE_BYTES * index :][:VALUE_BYTES]:",
        "if False:",
        (
            "unit/test_format_proof.py::"
            "test_a_block_of_another_place_or_with_one_bit_changed_is_refused",
            "integration/test_forged_parts.py::test_a_forged_part_is_refused",
        ),
    ),
    Mutation(
        "one-block-of-the-digest",
        "SPEC 3.2: A reader of some blocks MUST check a chunk of one block by its digest.",
        "modelstore/chunks/decode.py",
        "        if len(head.ends) == 1:\n",
        "        if False:\n",
        ("integration/test_forged_parts.py::test_a_forged_chunk_of_one_block_is_refused",),
    ),
    Mutation(
        "part-without-its-proof",
        "SPEC 3.2: Where a proof cannot be had any more, the whole chunk is read.",
        "modelstore/chunks/decode.py",
        "if lost or self._only_whole(place):",
        "if self._only_whole(place):",
        ("integration/test_forged_parts.py::test_a_proof_that_a_move_has_lost",),
    ),
    Mutation(
        "part-without-the-native-part",
        "SPEC 3.2: A reader that cannot compute chaining values MUST read the whole chunk.",
        "modelstore/chunks/decode.py",
        "return not can_prove() if place.proof_bytes else self._whole_parts",
        "return not place.proof_bytes and self._whole_parts",
        ("integration/test_forged_parts.py::test_without_the_native_part_whole_chunks_are_read",),
    ),
    Mutation(
        "verify-parts-by-chunks",
        "Settings: with TIERSTORE_VERIFY_PARTS=chunks, parts without proofs are of whole chunks.",
        "modelstore/chunks/decode.py",
        "return not can_prove() if place.proof_bytes else self._whole_parts",
        "return bool(place.proof_bytes) and not can_prove()",
        ("integration/test_forged_parts.py::test_chunks_without_proofs_are_read_whole_if_asked",),
    ),
    Mutation(
        "part-heals-by-whole-chunks",
        "decode: where a part of a base is bad, whole chunks are read, which are verified.",
        "modelstore/chunks/decode.py",
        "                if not at.bases:\n                    raise\n",
        "                raise\n",
        (
            "integration/test_forged_parts.py::"
            "test_rows_of_a_delta_on_a_forged_base_come_from_another_tier",
        ),
    ),
    Mutation(
        "check-reads-proofs",
        "CLI, check: with --read-data, everything is read that a reader may need.",
        "modelstore/care/check.py",
        "            reader.read(wants, own=True)\n            reader.check_proofs(batch)\n",
        "            reader.read(wants, own=True)\n",
        ("integration/test_forged_parts.py::test_check_finds_a_bad_proof",),
    ),
    Mutation(
        "table-proofs-in-the-pack",
        "SPEC 6: Frames of proofs MUST lie between the pack's header and its end.",
        "format/table.py",
        "or (offsets - proofs).min() < PACK_HEADER_BYTES",
        "or offsets.min() < PACK_HEADER_BYTES",
        ("unit/test_format_table.py::test_damaged_tables[a proof within the pack's header]",),
    ),
    Mutation(
        "base-is-standalone",
        "SPEC 3: A base MUST NOT be stored as a delta itself (depth 1).",
        "modelstore/chunks/decode.py",
        "if place is None or place.bases:",
        "if place is None:",
        ("integration/test_forged_frames.py::test_a_layout_whose_bases_are_deltas_is_damaged",),
    ),
    Mutation(
        "pack-id",
        "SPEC 4: The pack id is BLAKE3-256 over the 64 header bytes followed by the index bytes.",
        "format/pack.py",
        "if blake3.blake3(bytes(header)).update(index).digest() != trailer.pack_id:",
        "if False:",
        ("unit/test_format_pack.py::test_the_id_binds_header_and_index",),
    ),
    Mutation(
        "pack-without-gaps",
        "SPEC 4: Its index MUST list the frames in the order in which they lie, without a gap.",
        "format/pack.py",
        "if len(places) != trailer.frames or list(starts) != [*offsets, trailer.index_offset]:",
        "if len(places) != trailer.frames:",
        ("unit/test_format_pack.py::test_an_index_that_does_not_fit_its_pack",),
    ),
    Mutation(
        "sealed-body-checksum",
        "SPEC 5: xxh3 of the body; what breaks a checksum is damaged.",
        "format/sealed.py",
        "if xxh3(body) != body_sum:",
        "if False:",
        ("unit/test_format_sealed.py::test_damage_is_refused[body checksum]",),
    ),
    Mutation(
        "sealed-zstd-size",
        "SPEC 5: A zstd body MUST be one frame that declares exactly plain_bytes bytes.",
        "format/sealed.py",
        "if zstandard.frame_content_size(body) != plain_bytes:",
        "if False:",
        ("unit/test_format_sealed.py::test_damage_is_refused[zstd of undeclared length]",),
    ),
    Mutation(
        "sealed-kind",
        "SPEC 5: the envelope says which kind of object it holds.",
        "format/sealed.py",
        "if found != kind:",
        "if False:",
        ("unit/test_format_sealed.py::test_damage_is_refused",),
    ),
    Mutation(
        "required-features",
        "SPEC 5: a reader that does not know one of the features MUST refuse the object.",
        "format/checks.py",
        "unknown = sorted(set(requires) - KNOWN_FEATURES)",
        "unknown: list[str] = []",
        (
            "unit/test_format_sealed.py::"
            "test_unknown_fields_are_ignored_and_unknown_features_refused",
            "golden/test_golden.py::test_a_manifest_that_requires_more_is_refused",
        ),
    ),
    Mutation(
        "table-range",
        "SPEC 6: Offsets and lengths MUST lie between the pack's header and its end.",
        "format/table.py",
        "or (not own and (offsets + lengths > np.array(self.pack_sizes)[packs]).any())",
        "",
        ("unit/test_format_table.py::test_damaged_tables",),
    ),
    Mutation(
        "manifest-digest",
        "SPEC 7: Readers MUST check the manifest's digest against the bytes as stored.",
        "format/manifest.py",
        "if digest_of(plain) != digest:",
        "if False:",
        ("unit/test_format_manifest.py::test_the_digest_is_checked_over_the_stored_bytes",),
    ),
    Mutation(
        "manifest-file-and-folder",
        "SPEC 7: paths are unique, and none is a folder of another.",
        "format/paths.py",
        "if path in folders:",
        "if False:",
        (
            "unit/test_format_manifest.py::test_damage_is_refused",
            "integration/test_hub_kept.py::test_a_file_and_a_folder_of_one_name",
        ),
    ),
    Mutation(
        "manifest-checks-paths",
        "SPEC 7: paths are unique, and none is a folder of another.",
        "format/manifest.py",
        "        check_tree(paths)\n",
        "        pass\n",
        ("unit/test_format_manifest.py::test_damage_is_refused",),
    ),
    Mutation(
        "writer-checks-paths-first",
        "SPEC 7: paths are unique, and none is a folder of another.",
        "modelstore/saving/writer.py",
        "check_tree([file.path for file in files])",
        "pass",
        ("integration/test_hub_kept.py::test_a_file_and_a_folder_of_one_name",),
    ),
    Mutation(
        "empty-safetensors-file",
        "SPEC 7: A writer MUST NOT give an empty file a path that ends in .safetensors.",
        "serving/hub/commits.py",
        "if path.endswith(SUFFIX):",
        "if path.endswith(SUFFIX) and data:",
        ("integration/test_hub_kept.py::test_an_empty_safetensors_file_is_not_published",),
    ),
    Mutation(
        "manifest-fits-header",
        "SPEC 7: Tensors stand in the order of begin and MUST say what the header says.",
        "format/manifest.py",
        "if said != (tensor.name, tensor.dtype, tensor.shape, tensor.begin):",
        "if False:",
        ("unit/test_format_manifest.py::test_damage_is_refused",),
    ),
    Mutation(
        "path-parts",
        "SPEC 7: path is relative, no empty, . or .. part.",
        "format/paths.py",
        'if any(part in {"", ".", ".."} for part in path.split("/")):',
        "if False:",
        ("unit/test_format_manifest.py::test_paths_that_leave_their_directory_or_cannot_be_files",),
    ),
    Mutation(
        "path-nfc",
        "SPEC 7: path is NFC.",
        "format/paths.py",
        'elif unicodedata.normalize("NFC", path) != path:',
        "elif False:",
        ("unit/test_format_manifest.py::test_paths_that_leave_their_directory_or_cannot_be_files",),
    ),
    Mutation(
        "patch-indices-rise",
        "SPEC 7.1: As stored, indices MUST rise strictly and lie below the count of rows.",
        "format/patch.py",
        "if not last < first <= end < limit:",
        "if False:",
        ("unit/test_format_patch.py::test_damage_is_refused",),
    ),
    Mutation(
        "patch-requires",
        "SPEC 7.1: a reader refuses a patch manifest that does not require what its file needs.",
        "format/patch.py",
        "if missing := [feature for feature in spec.features if feature not in requires]:",
        "if missing := []:",
        ("unit/test_format_patch.py::test_damage_is_refused",),
    ),
    Mutation(
        "ref-entry-number",
        "SPEC 9: sequence numbers run without gaps; an entry is of the number in its key.",
        "format/reflog.py",
        "if entry.seq != seq:",
        "if False:",
        ("unit/test_format_refs.py::test_damaged_entries",),
    ),
    Mutation(
        "config-checksum",
        "SPEC 10: check is the xxh3 of the other fields.",
        "format/storeconfig.py",
        'if fields.pop("check", None) != _check(fields):',
        'if fields.pop("check", None) is None:',
        ("unit/test_format_refs.py::test_damaged_configs",),
    ),
    Mutation(
        "config-unknown-field",
        "SPEC 10: An unknown field of the config is refused.",
        "format/storeconfig.py",
        "if unknown := sorted(set(fields) - set(StoreConfig.__struct_fields__)):",
        "for extra in set(fields) - set(StoreConfig.__struct_fields__):\n"
        "            del fields[extra]\n"
        "        if unknown := []:",
        ("unit/test_format_refs.py::test_newer_configs",),
    ),
    Mutation(
        "config-features",
        "SPEC 10: a client that does not know a name in write MUST NOT write.",
        "format/storeconfig.py",
        "unknown = sorted(set(getattr(config.features, needed)) - STORE_FEATURES)",
        "unknown: list[str] = []",
        (
            "unit/test_format_refs.py::test_features_bind_only_what_they_are_for",
            "unit/test_modelstore_refs.py::"
            "test_a_store_with_an_unknown_write_feature_is_read_but_not_written",
        ),
    ),
    Mutation(
        "config-hash",
        "SPEC 2: A reader that does not know the name of the hash MUST refuse the store.",
        "format/storeconfig.py",
        "if config.hash != HASH:",
        "if False:",
        ("unit/test_format_refs.py::test_newer_configs",),
    ),
    Mutation(
        "tier-url-without-secret",
        "SPEC 13: url MUST NOT hold a secret.",
        "format/tiers.py",
        "if has_secret(spec.url) or any(map(SECRET_NAME.match, spec.options)):",
        "if False:",
        ("unit/test_format_tiers.py::test_a_tier_out_of_range_is_refused",),
    ),
    Mutation(
        "safetensors-holes",
        "SECURITY: Safetensors headers are checked by the rules of that format.",
        "format/safetensors.py",
        "if tensor.begin != at:",
        "if tensor.begin < at:",
        ("unit/test_safetensors.py::test_hostile_header_is_refused_in_one_line",),
    ),
    Mutation(
        "safetensors-repeated-key",
        "SECURITY: Safetensors headers are checked by the rules of that format.",
        "format/safetensors.py",
        'if outside.count(b":") != keys:',
        "if False:",
        ("unit/test_safetensors.py::test_hostile_header_is_refused_in_one_line",),
    ),
    Mutation(
        "safetensors-header-limit",
        "SPEC 7: Limits: header 100 MB each, checked before memory is allocated.",
        "format/safetensors.py",
        "if n > MAX_HEADER_BYTES:",
        "if False:",
        ("unit/test_safetensors.py::test_length_limit_is_checked_on_the_first_8_bytes",),
    ),
)

_DURABILITY = (
    Mutation(
        "blob-file-synced",
        "blobs.local.store: A blob is written, synced, and then renamed or hard-linked to its "
        "place.",
        "blobs/local/store.py",
        "files.write_all(fd, views)\n                    os.fsync(fd)",
        "files.write_all(fd, views)",
        (
            "unit/test_blobs_local.py::"
            "test_a_blob_is_synced_before_it_appears_and_its_directories_after",
        ),
    ),
    Mutation(
        "blob-directory-synced",
        "blobs.local.store: after which every directory that changed is synced.",
        "blobs/local/store.py",
        "os.rename(temp, name, src_dir_fd=temp_fd, dst_dir_fd=folder)\n"
        "                self._sync(folder, key)",
        "os.rename(temp, name, src_dir_fd=temp_fd, dst_dir_fd=folder)",
        (
            "unit/test_blobs_local.py::"
            "test_a_blob_is_synced_before_it_appears_and_its_directories_after",
        ),
    ),
    Mutation(
        "blob-parents-synced",
        "blobs.local.store: after which every directory that changed is synced.",
        "blobs/local/store.py",
        "if create and path not in self._durable_dirs:",
        "if False:",
        ("unit/test_blobs_local.py::test_a_directory_that_another_process_made_is_synced_too",),
    ),
    Mutation(
        "blob-renamed-into-place",
        "SPEC 10: Every object is written by one put; a crash leaves a whole blob or none.",
        "blobs/local/store.py",
        'with self._errors("writing", key), self._temp_file(data) as (temp_fd, temp):\n'
        "            folder, name = self._open_parent(key, create=True)\n"
        "            try:\n"
        "                os.rename(temp, name, src_dir_fd=temp_fd, dst_dir_fd=folder)",
        'with self._errors("writing", key):\n'
        "            folder, name = self._open_parent(key, create=True)\n"
        "            try:\n"
        "                flags = files.CREATE_FLAGS & ~os.O_EXCL | os.O_TRUNC\n"
        "                fd = os.open(name, flags, 0o666, dir_fd=folder)\n"
        "                files.write_all(fd, flat_views(data))\n"
        "                os.fsync(fd)\n"
        "                os.close(fd)",
        ("unit/test_blobs_local.py::test_a_killed_writer_leaves_the_old_blob_or_the_new_one",),
    ),
    Mutation(
        "blob-create-only",
        "SPEC 9: entries are created with put-if-absent, never changed.",
        "blobs/local/store.py",
        "os.link(temp, name, src_dir_fd=temp_fd, dst_dir_fd=folder, follow_symlinks=False)\n"
        "            except FileExistsError:",
        "os.rename(temp, name, src_dir_fd=temp_fd, dst_dir_fd=folder)\n"
        "            except FileExistsError:",
        ("unit/test_blobs_local.py::test_eight_processes_race_to_create",),
    ),
    Mutation(
        "blob-links-not-followed",
        "blobs.local.store: a symbolic link below the root never leads out of it.",
        "blobs/local/files.py",
        "flags = DIR_FLAGS | os.O_NOFOLLOW",
        "flags = DIR_FLAGS",
        ("unit/test_blobs_local.py::test_symbolic_links_lead_nowhere",),
    ),
    Mutation(
        "manifest-before-layout",
        "SPEC 11: 3. manifest 5. layout 6. ref entry.",
        "modelstore/saving/writer.py",
        "self._create(version_key(digest), sealed)\n        self._publish(digest)",
        "self._publish(digest)\n        self._create(version_key(digest), sealed)",
        (
            "integration/test_crash.py::"
            "test_the_writes_of_a_save_come_in_the_order_of_the_specification",
        ),
    ),
    Mutation(
        "packs-durable-before-manifest",
        "SPEC 11: 2. packs 3. manifest.",
        "modelstore/saving/writer.py",
        "        self._packer.finish()\n"
        "        digest, sealed = seal_manifest(\n"
        "            Manifest(chunk_size=self._chunk_size, files=entries, lineage=tuple(lineage))\n"
        "            if patch is None\n"
        "            else patch_manifest(entries[0], patch, self._chunk_size)\n"
        "        )\n"
        "        self._create(version_key(digest), sealed)\n",
        "        digest, sealed = seal_manifest(\n"
        "            Manifest(chunk_size=self._chunk_size, files=entries, lineage=tuple(lineage))\n"
        "            if patch is None\n"
        "            else patch_manifest(entries[0], patch, self._chunk_size)\n"
        "        )\n"
        "        self._create(version_key(digest), sealed)\n"
        "        self._packer.finish()\n",
        (
            "integration/test_crash.py::"
            "test_the_writes_of_a_save_come_in_the_order_of_the_specification",
        ),
    ),
    Mutation(
        "ref-entry-put-if-absent",
        "SPEC 9: created with put-if-absent; of two writers each gets its own number.",
        "modelstore/home/once.py",
        "if home_blobs.put_if_absent(key, data):\n            return True",
        "home_blobs.put(key, data)\n        return True",
        ("unit/test_modelstore_refs.py::test_racing_writers_each_get_their_own_place",),
    ),
    Mutation(
        "ref-entry-write-id",
        "SPEC 9: it is its own if and only if write_id is.",
        "modelstore/home/once.py",
        "if there == data:",
        "if there is not None:",
        ("unit/test_modelstore_refs.py::test_a_place_that_another_writer_took_is_not_ours",),
    ),
    Mutation(
        "ref-entry-lost-answer",
        "SPEC 9: A writer that lost the answer reads the entry back.",
        "modelstore/home/once.py",
        "        lost = error\n",
        "        raise\n",
        ("unit/test_modelstore_refs.py::test_a_lost_answer_is_recognised_as_our_own",),
    ),
    Mutation(
        "reused-packs-confirmed",
        "SPEC 11: every reused pack is confirmed to exist before the layout.",
        "modelstore/saving/writer.py",
        "            unfit = self._unfit_packs()\n",
        "            unfit: set[bytes] = set()\n",
        ("integration/test_save_load_dedup.py::test_a_pack_that_vanished_is_stored_again",),
    ),
    Mutation(
        "condemned-packs",
        "SPEC 10: A writer MUST NOT reuse a chunk in a condemned pack.",
        "modelstore/home/confirm.py",
        "if not has or pack in condemned}",
        "if not has}",
        (
            "integration/test_save_load_dedup.py::test_a_condemned_pack_is_not_reused",
            "integration/test_save_load_dedup.py::"
            "test_a_pack_condemned_while_the_save_runs_is_not_reused",
        ),
    ),
    Mutation(
        "pack-of-another-size",
        "SPEC 8: whatever is taken from the index is confirmed before a version uses it.",
        "modelstore/home/confirm.py",
        "return size_of(pack_key(pack)) == sizes[pack]",
        "return size_of(pack_key(pack)) >= 0",
        ("integration/test_save_load_dedup.py::test_a_pack_that_vanished_is_stored_again",),
    ),
    Mutation(
        "lease-renewed-before-the-look",
        "SPEC 11: 4. the lease is renewed; had it ended, a save's own packs may be gone, too.",
        "modelstore/saving/writer.py",
        "if not self._lease.renew():",
        "if not (self._lease.renew() or True):",
        (
            "integration/test_save_load_dedup.py::"
            "test_after_the_lease_ended_own_packs_are_confirmed_too",
        ),
    ),
    Mutation(
        "gone-chunks-checked-again",
        "SPEC 1: any stored byte is verified: a source that changed is not stored under its "
        "digest.",
        "modelstore/saving/writer.py",
        "if hashed.digest != digest:",
        "if False:",
        (
            "integration/test_save_load_dedup.py::"
            "test_a_source_that_changed_before_it_is_read_again_is_an_error",
        ),
    ),
    Mutation(
        "source-changed",
        "Explanation 6: What changed while it was read is an error, and nothing is published.",
        "modelstore/saving/source.py",
        "same = _identity(os.fstat(self._fd)) == self._identity",
        "same = True",
        ("unit/test_modelstore_source.py::test_a_file_that_changes_is_an_error",),
    ),
    Mutation(
        "array-changed",
        "Explanation 6: What changed while it was read is an error, and nothing is published.",
        "modelstore/saving/source.py",
        "if xxh3(out) != value:",
        "if False:",
        (
            "unit/test_modelstore_source.py::"
            "test_an_array_that_changes_is_an_error_and_no_wrong_byte_is_kept",
        ),
    ),
    Mutation(
        "stored-again-verified",
        "SPEC 12: What is read in order to be stored again MUST be verified first, whatever tier "
        "it comes from.",
        "modelstore/chunks/reader.py",
        "_verifies_all = True",
        "_verifies_all = False",
        (
            "integration/test_hot_deltas.py::"
            "test_a_base_that_this_nodes_disk_has_changed_is_fetched_for_a_delta",
            "integration/test_stored_again.py::test_a_fold_holds_what_was_saved",
            "integration/test_stored_again.py::test_an_export_writes_what_was_saved",
            "integration/test_stored_again.py::test_a_variant_is_made_of_what_was_saved",
            "integration/test_stored_again.py::test_a_rebase_stores_what_was_saved",
            "integration/test_stored_again.py::"
            "test_a_patch_that_is_published_again_is_what_was_published",
        ),
    ),
    Mutation(
        "fold-compared-by-digests",
        "SPEC 8: a fold's bytes equal a patch version's: 'check' compares what no patch changes.",
        "modelstore/care/check_folds.py",
        "elif tensor._base.digests != entry.chunks:",
        "elif False:",
        ("integration/test_check_folds.py::test_what_lies_in_chunks_as_it_is_costs_no_data",),
    ),
    Mutation(
        "fold-compared-by-data",
        "SPEC 8: a fold's bytes equal a patch version's: 'check --read-data' computes what patches "
        "change.",
        "modelstore/care/check_folds.py",
        "if digest_of(plain).raw != digests[(low + at) // self._chunk_size]:",
        "if False:",
        (
            "integration/test_check_folds.py::"
            "test_what_patches_change_is_computed_where_data_is_read",
        ),
    ),
    Mutation(
        "fold-compared-by-files",
        "SPEC 8: a fold's files equal a patch version's: 'check' compares them.",
        "modelstore/care/check_folds.py",
        "same = file == other",
        "same = True",
        ("integration/test_check_folds.py::test_a_file_that_no_patch_touches_is_compared",),
    ),
    Mutation(
        "stored-again-in-whole-chunks",
        "SPEC 12: What is read in order to be stored again MUST be whole chunks.",
        "modelstore/chunks/decode.py",
        "if self._verify_all:\n            return self._give_whole",
        "if False:\n            return self._give_whole",
        (
            "integration/test_forged_frames.py::"
            "test_a_part_that_is_to_be_stored_again_is_compared_with_its_chunks_digest",
        ),
    ),
    Mutation(
        "pointer-of-git-lfs",
        "docs/how-to/save-and-load.md: a pointer of git-lfs is refused",
        "modelstore/saving/kinds.py",
        "if size <= _POINTER_BYTES and _POINTER.match(begin):",
        "if False:",
        ("unit/test_modelstore_source.py::test_pointers_of_git_lfs_are_refused_by_any_name",),
    ),
    Mutation(
        "index-names-missing-shard",
        "docs/how-to/save-and-load.md: an index that names a missing shard is refused",
        "modelstore/saving/kinds.py",
        "if missing:",
        "if False:",
        ("unit/test_modelstore_source.py::test_an_index_names_files_that_are_there",),
    ),
    Mutation(
        "no-tensors",
        "docs/how-to/save-and-load.md: a directory without tensors is refused",
        "modelstore/saving/source.py",
        "if not allow_no_tensors and not any(one.header and one.header.tensors for one in files):",
        "if False:",
        ("unit/test_modelstore_source.py::test_a_directory_without_tensors_has_to_be_meant",),
    ),
    Mutation(
        "secrets-left-out",
        "docs/explanation/limits.md: .env is left out",
        "modelstore/saving/source.py",
        "if is_beside(name):",
        "if False:",
        (
            "unit/test_modelstore_source.py::test_what_systems_leave_and_secrets_are_left_out_and_said",
        ),
    ),
    Mutation(
        "safetensors-by-header",
        "docs/how-to/save-and-load.md: known by its header",
        "modelstore/saving/source.py",
        "if may_be_safetensors(begin, self.size):",
        "if False:",
        ("unit/test_modelstore_source.py::test_a_safetensors_file_is_known_by_its_header",),
    ),
    Mutation(
        "tensor-in-no-file",
        "serving/vllm.py: an index lists what a file has",
        "serving/vllm.py",
        "if name not in files:",
        "if False:",
        ("integration/test_serving_vllm.py::test_a_tensor_is_in_exactly_one_file",),
    ),
    Mutation(
        "service-variables",
        "docs/reference/settings.md: variables of a Service are ignored",
        "config.py",
        "if name.startswith(PREFIX) and not is_service_variable(name, value)",
        "if name.startswith(PREFIX)",
        ("integration/test_cli_process.py::test_variables_of_a_kubernetes_service_are_not_ours",),
    ),
    Mutation(
        "closed-streams",
        "cli/kit/streams.py: what is printed gets into no file",
        "cli/kit/streams.py",
        "            _connect_to_nothing(fd)\n    if sys.stdin is None:",
        "            pass\n    if sys.stdin is None:",
        ("integration/test_cli_process.py::test_streams_that_are_closed_are_no_error",),
    ),
    Mutation(
        "texts-of-requests",
        "docs/how-to/tiers.md: credentials with a line end are named, and never shown",
        "blobs/objects/connect.py",
        "if not (value.isascii() and value.isprintable() and value == value.strip()):",
        "if False:",
        ("unit/test_blobs_object.py::test_texts_that_no_request_can_hold_are_named_and_not_shown",),
    ),
    Mutation(
        "warm-up-that-may-not-write",
        "CHANGELOG.md: warmup --wait ends at once where this user may not write",
        "modelstore/placing/warming.py",
        "if target.refused is not None and _missing(target, needed):",
        "if False:",
        ("integration/test_cli_process.py::test_a_warm_up_that_may_not_write_ends_at_once",),
    ),
    Mutation(
        "module-loads-itself",
        "docs/how-to/serving.md: load_model does what load_state_dict does",
        "serving/torch.py",
        "if (missing or unexpected) and loads_itself(module):",
        "if False:",
        ("integration/test_serving_torch.py::test_load_model_does_what_load_state_dict_does",),
    ),
    Mutation(
        "tensor-in-two-files",
        "serving/torch.py: of two files with a tensor none is guessed",
        "serving/torch.py",
        "if short != name and short in own and short not in tensors:",
        "if False:",
        ("integration/test_serving_torch.py::test_a_tensor_that_two_files_have_is_not_guessed",),
    ),
    Mutation(
        "one-element-strided",
        "docs/reference/python.md: arrays may have any strides",
        "modelstore/loading/arrays.py",
        "return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)",
        "return tensor.reshape(-1).view(torch.uint8)",
        ("integration/test_torch_arrays.py::test_one_element_may_have_any_stride",),
    ),
    Mutation(
        "part-of-a-distributed-tensor",
        "modelstore/loading/arrays.py: one rank's part is not taken for the whole",
        "modelstore/loading/arrays.py",
        'if callable(getattr(tensor, "full_tensor", None)):',
        "if False:",
        (
            "integration/test_torch_arrays.py::"
            "test_a_part_of_a_distributed_tensor_is_not_taken_for_the_whole",
        ),
    ),
    Mutation(
        "buffer-of-the-tensors-elements",
        "Model.load_into: a buffer has the tensor's dtype and shape, or is raw bytes.",
        "modelstore/loading/arrays.py",
        'if found not in {None, (dtype, shape), ("U8", (nbytes,))}:',
        "if False:",
        (
            "unit/test_modelstore_arrays.py::test_a_buffer_of_another_dtype_or_shape_is_refused",
            "integration/test_load_into.py::"
            "test_a_buffer_of_other_elements_is_refused_before_anything_is_read",
        ),
    ),
    Mutation(
        "file-known-by-its-sha256",
        "serving.hub.spool: a commit publishes nothing unless it stores what the file's name says.",
        "modelstore/saving/writer.py",
        "if file.sha256 is not None and file.sha256 != sha.digest():",
        "if False:",
        (
            "integration/test_hub_kept.py::"
            "test_an_upload_that_changed_in_the_spool_is_not_published[data-big.dat]",
        ),
    ),
    Mutation(
        "moved-chunks-match-their-digests",
        "SPEC 13: 1. compare the chunk of every standalone frame with its digest.",
        "tiers/durable/packcheck.py",
        "if digest_of(plain).raw != head.digest:",
        "if False:",
        (
            "integration/test_mover.py::"
            "test_a_copy_with_right_checksums_of_other_bytes_is_not_relied_on",
        ),
    ),
    Mutation(
        "variant-that-waits-compared",
        "variants.spool: what is read from the file is compared with what was written.",
        "variants/spool.py",
        "if xxh3(piece) != self._sums[number]:",
        "if False:",
        ("unit/test_variants_spool.py::test_what_the_disk_changed_is_not_stored",),
    ),
    Mutation(
        "handed-on-from-where-it-was-verified",
        "SPEC 12: a chunk that is handed on MUST be verified in memory that nobody else can write.",
        "modelstore/chunks/reader.py",
        "copied = self._hot.local is not None or len(self._outs[want.place.digest]) > 1",
        "copied = False",
        (
            "integration/test_load_into.py::"
            "test_what_the_hot_tier_gets_was_verified_where_nobody_else_writes",
            "integration/test_load_into.py::"
            "test_a_chunk_of_several_buffers_comes_from_where_it_was_verified",
        ),
    ),
    Mutation(
        "found-here-is-not-handed-on",
        "SPEC 12: a chunk that is handed on to another reader MUST be verified.",
        "modelstore/chunks/reader.py",
        "self._hot.flights.fail([flight])",
        "self._hot.flights.land(flight, lambda: Verified(self._wants[digest].out))",
        (
            "integration/test_stored_again.py::"
            "test_who_waits_for_a_chunk_that_is_found_on_this_node_looks_there",
        ),
    ),
    Mutation(
        "callers-buffer-verified-once-more",
        "SPEC 12: a chunk that is handed on MUST be verified in memory that nobody else can write.",
        "modelstore/chunks/reader.py",
        "return Verified(room) if digest_of(room).raw == want.place.digest else None",
        "return Verified(room)",
        ("integration/test_load_into.py::test_readers_that_wait_get_what_was_verified",),
    ),
    Mutation(
        "pickles-refused",
        "SECURITY: Pickles are refused, and nothing is ever unpickled.",
        "modelstore/saving/source.py",
        "if is_pickle(path, begin):",
        "if False:",
        ("unit/test_modelstore_source.py::test_pickles_are_refused_with_the_way_out",),
    ),
    Mutation(
        "export-stays-inside",
        "SECURITY: Paths in a manifest cannot leave the directory that they are exported to.",
        "modelstore/loading/exportdir.py",
        "_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC",
        "_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC",
        ("integration/test_hostile_export.py::test_a_link_that_comes_while_an_export_is_at_work",),
    ),
    Mutation(
        "export-others-refused",
        "Explanation 17: files that no export wrote are a refusal.",
        "modelstore/loading/exportdir.py",
        'if foreign and others == "refuse":',
        "if False:",
        (
            "integration/test_hostile_export.py::test_other_files_are_named",
            "integration/test_export_property.py::test_directories_exported_over_each_other_give_exactly_the_last",
        ),
    ),
    Mutation(
        "export-earlier-removed",
        "Explanation 17: files of an earlier export that this version lacks are removed.",
        "modelstore/loading/exportdir.py",
        "self._stale = (there & self._owned) | own | foreign",
        "self._stale = own | foreign",
        (
            "integration/test_export_property.py::test_directories_exported_over_each_other_give_exactly_the_last",
        ),
    ),
    Mutation(
        "export-nothing-in-the-way",
        "Explanation 17: with merge, a file of others that is in the way is a refusal.",
        "modelstore/loading/exportdir.py",
        "        if blocked:\n",
        "        if False:\n",
        ("integration/test_hostile_export.py::test_something_in_the_way",),
    ),
    Mutation(
        "export-one-at-a-time",
        "Explanation 17: two exports into one directory are a refusal.",
        "modelstore/loading/exportdir.py",
        "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        ("integration/test_hostile_export.py::test_two_exports_into_one_directory",),
    ),
    Mutation(
        "export-mount-points",
        "Explanation 17: an export leaves mount points below its directory alone.",
        "modelstore/loading/exportdir.py",
        "if every or any(path == mount or mount in folders_of(path) for path in paths):",
        "if False:",
        ("integration/test_hostile_export.py::test_a_mount_point_below_the_target",),
    ),
    Mutation(
        "export-names-probed",
        "Explanation 17: a target that cannot hold two names is a refusal.",
        "modelstore/loading/exportdir.py",
        "        self._check_names()\n",
        "        pass\n",
        ("integration/test_hostile_export.py::test_a_target_that_takes_two_names_for_one",),
    ),
    Mutation(
        "export-new-paths",
        "SPEC 7: A reader MUST accept such a path; an export refuses it.",
        "modelstore/loading/exportdir.py",
        "        check_new_path(path)\n",
        "        pass\n",
        ("integration/test_hostile_export.py::test_names_that_are_refused_and_stay_readable",),
    ),
    Mutation(
        "export-no-mix",
        "Explanation 17: files of the version before are removed before the first new one comes.",
        "modelstore/loading/exportdir.py",
        "for rank in (2, 1, 0):  # what",
        "for rank in ():  # what",
        ("integration/test_export_property.py::test_an_export_that_is_killed_at_any_call",),
    ),
    Mutation(
        "export-read-first-last",
        "Explanation 17: what a loader reads first goes first, and comes last.",
        "modelstore/loading/exportdir.py",
        "sorted(self._new, key=_rank)",
        "sorted(self._new, key=_rank, reverse=True)",
        ("integration/test_export_property.py::test_an_export_that_is_killed_at_any_call",),
    ),
    Mutation(
        "export-list-first",
        "Explanation 17: before a file is removed, the list says that the directory is not whole.",
        "modelstore/loading/exportdir.py",
        "self._write_list(whole=False, files=self._new | self._owned)",
        "pass",
        ("integration/test_export_property.py::test_an_export_that_is_killed_at_any_call",),
    ),
    Mutation(
        "export-list-stays-inside",
        "Explanation 17: a list that names a path outside of its directory is none.",
        "format/exportlist.py",
        "            check_path(path)\n",
        "            pass\n",
        ("integration/test_hostile_export.py::test_a_list_that_is_none",),
    ),
    Mutation(
        "writers-new-paths",
        "SPEC 7: A writer MUST NOT give a file a path with a control character.",
        "modelstore/saving/source.py",
        "yield check_new_path(path)",
        "yield path",
        ("integration/test_hostile_export.py::test_names_that_are_refused_and_stay_readable",),
    ),
    Mutation(
        "save-interrupted-export",
        "Explanation 17: a save refuses a directory in which an export was interrupted.",
        "modelstore/saving/source.py",
        "if found is not None and not found.whole:",
        "if False:",
        (
            "integration/test_hostile_export.py::test_a_save_of_an_interrupted_export_is_refused",
            "integration/test_export_property.py::test_an_export_that_is_killed_at_any_call",
        ),
    ),
    Mutation(
        "save-exported-meanwhile",
        "Explanation 17: a save during which another version is exported to the directory fails.",
        "modelstore/saving/source.py",
        "if _export_in(where) != before:",
        "if False:",
        ("integration/test_hostile_export.py::test_an_export_while_the_directory_is_saved",),
    ),
    Mutation(
        "export-apart-from-the-store",
        "Explanation 17: no target of an export may overlap with a place of the store.",
        "modelstore/loading/model.py",
        "self._opened.places.check(directory)",
        "pass",
        ("integration/test_overlap.py::test_an_export_into_a_place_of_the_store",),
    ),
    Mutation(
        "export-of-tensors-apart",
        "Explanation 17: no target of an export may overlap with a place of the store.",
        "modelstore/loading/model.py",
        "self._opened.places.check(file)",
        "pass",
        ("integration/test_overlap.py::test_an_export_into_a_place_of_the_store",),
    ),
    Mutation(
        "save-apart-from-the-store",
        "Explanation 17: no source of a save may overlap with a place of the store.",
        "modelstore/saving/source.py",
        "    places.check(source)\n",
        "",
        ("integration/test_overlap.py::test_a_save_of_a_place_of_the_store",),
    ),
    Mutation(
        "patch-apart-from-the-store",
        "Explanation 17: no source of a save may overlap with a place of the store.",
        "modelstore/store.py",
        "self._parts.places.check(changes)",
        "pass",
        ("integration/test_overlap.py::test_a_save_of_a_place_of_the_store",),
    ),
    Mutation(
        "places-by-identity",
        "Explanation 17: two names of one directory are the same place.",
        "modelstore/places.py",
        "found.append((there.st_dev, there.st_ino))",
        "found.append(str(folder))",
        ("integration/test_overlap.py::test_a_directory_that_is_mounted_twice",),
    ),
    Mutation(
        "tiers-apart",
        "Explanation 17: no two tiers may be in one place.",
        "wiring/places.py",
        "            _check_apart(store_place(place.spec), taken)\n",
        "",
        (
            "integration/test_overlap.py::test_an_init_that_is_refused_leaves_nothing",
            "integration/test_overlap.py::test_a_tier_that_is_added_or_moved_into_another",
        ),
    ),
    Mutation(
        "spool-apart",
        "Explanation 17: the gateway's folder for uploads may not overlap with the store.",
        "serving/hub/command.py",
        "store._parts.places.check(folder, but=CACHE)",
        "pass",
        ("integration/test_overlap.py::test_a_spool_in_a_place_of_the_store",),
    ),
    Mutation(
        "export-sha256",
        "SECURITY: An exported file is compared with the SHA-256 that was recorded.",
        "modelstore/loading/export.py",
        "if sha.digest() != file.sha256:",
        "if False:",
        ("integration/test_hostile_damage.py::test_a_wrong_sha256_puts_no_file_in_place",),
    ),
    Mutation(
        "names-by-case",
        "SPEC 9: Model and alias are unique under Unicode case folding.",
        "modelstore/names/names.py",
        "if other != name and other.casefold() == name.casefold():",
        "if False:",
        ("unit/test_modelstore_refs.py::test_names_that_differ_only_in_case_are_refused",),
    ),
    Mutation(
        "names-nfc",
        "SPEC 9: Model and alias are NFC.",
        "ids.py",
        'normal = unicodedata.normalize("NFC", name)',
        "normal = name",
        ("unit/test_ids.py::test_names_are_composed",),
    ),
)

_TIERS = (
    Mutation(
        "tier-that-a-pin-needs",
        "docs/how-to/tiers.md: `rm` refuses as long as a pack is pinned there.",
        "admin/manage.py",
        "    if stay:\n",
        "    if False:\n",
        ("integration/test_cli_tiers.py::test_a_tier_that_a_pin_needs_is_not_removed",),
    ),
    Mutation(
        "tier-marker-when-written",
        "SPEC 13: A tier without tier.json MUST be treated as one that cannot be asked.",
        "tiers/durable/tiers.py",
        "tier.verify()  # it is safe only if the tier was there while it was written",
        "pass",
        ("unit/test_tiers_durable.py::test_a_mount_that_is_missing_is_not_an_empty_tier",),
    ),
    Mutation(
        "tier-marker-when-missing",
        "SPEC 13: A tier without tier.json MUST be treated as one that cannot be asked.",
        "tiers/durable/tiers.py",
        "if again and not self._is_itself(tier):",
        "if False:",
        ("unit/test_tiers_durable.py::test_a_mount_that_is_missing_is_not_an_empty_tier",),
    ),
    Mutation(
        "tier-of-another-store",
        "SPEC 13: tier.json of another store: MUST be treated as one that cannot be asked.",
        "tiers/durable/marker.py",
        "        raise Unreachable(f\"the {MARKER} at {store.url} is another store's, not of "
        'tier {name}")',
        "        return",
        ("unit/test_tiers_durable.py::test_a_place_is_claimed_by_one_store",),
    ),
    Mutation(
        "tier-claimed-once",
        "SPEC 13: tier.json shows that the tier is really there, and of which store.",
        "tiers/durable/marker.py",
        "    if owner != store_id:\n        raise Conflict(",
        "    if False:\n        raise Conflict(",
        ("unit/test_tiers_durable.py::test_a_place_is_claimed_by_one_store",),
    ),
    Mutation(
        "tier-could-not-be-asked",
        "SPEC 13: It MUST distinguish a tier that could not be asked from one that lacks the pack.",
        "tiers/durable/tiers.py",
        "            self._failures.append((tier, error))\n",
        "",
        ("unit/test_tiers_durable.py::test_not_found_is_told_apart_from_could_not_ask",),
    ),
    Mutation(
        "tiers-asked-again",
        "SPEC 13: A reader MUST NOT report a pack as missing before the first was asked again.",
        "tiers/durable/tiers.py",
        "for again in (False, True)[: len(tiers)]:",
        "for again in (False,):",
        ("unit/test_tiers_durable.py::test_a_pack_that_moves_up_while_it_is_looked_for_is_found",),
    ),
    Mutation(
        "draining-tier-takes-nothing",
        "SPEC 13: A writer puts a pack into the first active tier that takes it.",
        "tiers/durable/tiers.py",
        "if not tier.takes_writes or tier.archive is not None:",
        "if tier.archive is not None:",
        ("unit/test_tiers_durable.py::test_a_draining_tier_is_read_but_not_written",),
    ),
    Mutation(
        "deleted-only-when-all-said-so",
        "SPEC 13: calls a pack deleted only when every tier said so.",
        "tiers/durable/tiers.py",
        "        if failed is not None:\n            raise failed\n",
        "",
        ("unit/test_tiers_durable.py::test_delete_reaches_every_tier_and_says_which_failed",),
    ),
    Mutation(
        "tier-quota",
        "SPEC 13: size: quota in bytes.",
        "tiers/durable/room.py",
        "return self._used + nbytes <= quota",
        "return True",
        ("integration/test_mover.py::test_a_quota_is_kept_by_saves_and_by_the_mover",),
    ),
    Mutation(
        "tiers-feature-first",
        "SPEC 13: the feature is set before the first list of tiers is written.",
        "modelstore/home/tierlist.py",
        "        self._announce()\n",
        "",
        ("unit/test_modelstore_tierlist.py::test_the_feature_is_announced_before_the_first_list",),
    ),
    Mutation(
        "tiers-write-id",
        "SPEC 13: A lost answer is resolved by write_id, as in a ref log.",
        "modelstore/home/once.py",
        "if there == data:",
        "if there is not None:",
        ("unit/test_modelstore_tierlist.py::test_of_two_admins_one_gets_a_conflict",),
    ),
    Mutation(
        "tier-secret-not-repeated",
        "SECURITY: Passwords and keys are never taken from a URL, nor shown.",
        "modelstore/home/tierlist.py",
        "if has_secret(spec.url):",
        "if False:",
        (
            "unit/test_modelstore_tierlist.py::"
            "test_a_bad_tier_is_refused_and_nothing_secret_repeated",
        ),
    ),
    Mutation(
        "damaged-pin-holds",
        "SPEC 13: A pin that cannot be read pins in both.",
        "modelstore/home/pins.py",
        "        with suppress(InvalidName):\n",
        '        if key == "":\n',
        ("unit/test_modelstore_pins.py::test_a_damaged_pin_still_holds",),
    ),
)

_MOVER = (
    Mutation(
        "mover-reads-copy-back",
        "SPEC 13: 2. read the copy back and verify it.",
        "tiers/durable/mover.py",
        "why = self._differs(target, key, data)",
        'why = ""',
        ("integration/test_mover.py::test_the_order_of_a_demotion",),
    ),
    Mutation(
        "mover-copies-bytes-compared",
        "SPEC 13: all of its bytes are those that were read, by a digest.",
        "tiers/durable/mover.py",
        'return "" if digest.digest() == blake3.blake3(data).digest() else "its bytes differ"',
        'return ""',
        ("integration/test_mover.py::test_a_tier_that_fails_loses_nothing",),
    ),
    Mutation(
        "mover-checks-packs",
        "SPEC 13: verify it: its trailer and index (the pack id).",
        "tiers/durable/mover.py",
        "        check_pack(key, view)\n",
        "",
        (
            "integration/test_mover.py::"
            "test_a_damaged_source_is_not_copied_and_a_good_copy_elsewhere_is",
            "integration/test_mover.py::test_a_damaged_copy_in_the_target_is_not_relied_on",
        ),
    ),
    Mutation(
        "mover-lease-before-delete",
        "SPEC 13: Its holder MUST stop deleting when there is a higher one.",
        "tiers/durable/mover.py",
        "            self._lease.check()\n            source.blobs.delete([key])",
        "            source.blobs.delete([key])",
        ("integration/test_mover.py::test_a_mover_that_lost_its_lease_deletes_nothing_more",),
    ),
    Mutation(
        "mover-pins-after-the-plan",
        "SPEC 13: its packs not moved out of warm ones (while pinned).",
        "tiers/durable/mover.py",
        "if not self._may_leave(move):",
        "if False:",
        (
            "integration/test_mover.py::"
            "test_what_is_pinned_stays_also_when_it_is_pinned_after_the_plan",
        ),
    ),
    Mutation(
        "mover-puts-back",
        "Explanation 9: dropped only when a slower copy was verified: what vanished is put back.",
        "tiers/durable/mover.py",
        "                source.blobs.put(key, data)\n",
        "",
        (
            "integration/test_mover.py::"
            "test_a_copy_that_vanishes_while_the_other_one_is_dropped_is_put_back",
        ),
    ),
    Mutation(
        "mover-only-for-a-colder-copy",
        "SPEC 13: A mover MUST NOT delete a copy before it has verified one in a colder tier.",
        "tiers/durable/mover.py",
        'if source is target or (move.drops and not colder and move.kind != "drain"):',
        "if source is target:",
        ("integration/test_mover.py::test_a_plan_that_breaks_the_rules_is_not_carried_out",),
    ),
    Mutation(
        "mover-drains-what-drains",
        "SPEC 13: Only draining a tier deletes from the coldest one.",
        "tiers/durable/mover.py",
        'if move.kind == "drain" and source.takes_writes and source.name != HOME_NAME:',
        "if False:",
        ("integration/test_mover.py::test_a_plan_that_breaks_the_rules_is_not_carried_out",),
    ),
    Mutation(
        "mover-verifies-marker-again",
        "SPEC 13: before the copy is dropped, the target is what it is said to be.",
        "tiers/durable/mover.py",
        "        with self._asking(target):\n"
        "            target.verify()\n"
        "        with self._asking(source):\n",
        "        with self._asking(source):\n",
        (
            "integration/test_mover.py::"
            "test_a_target_that_is_gone_once_it_was_written_lets_nothing_go",
        ),
    ),
    Mutation(
        "one-mover",
        "SPEC 13: the lease is created only when the highest one has ended.",
        "modelstore/placing/moverlease.py",
        "if left > 0:",
        "if False:",
        ("integration/test_mover.py::test_a_mover_that_lost_its_lease_deletes_nothing_more",),
    ),
    Mutation(
        "mover-lease-in-time",
        "SPEC 13: MUST stop deleting when it could not renew it in time.",
        "modelstore/placing/moverlease.py",
        "if since >= self._lease.ttl_s:",
        "if False:",
        ("integration/test_mover.py::test_a_lease_that_lapsed_unseen_is_taken_again",),
    ),
    Mutation(
        "plan-keeps-pinned-packs",
        "SPEC 13: its packs not moved out of warm ones (while pinned).",
        "placement/scene.py",
        "if pack in self.pinned and tier.warm and after[pack] != WARM:",
        "if False:",
        ("unit/test_placement_plan.py::test_pinned_packs_and_their_bases_stay",),
    ),
    Mutation(
        "plan-relies-on-what-answers",
        "Explanation 9: a tier that could not be asked is never taken for one that has the pack.",
        "placement/scene.py",
        "if target is tier or not target.reachable or target.draining:",
        "if target is tier:",
        (
            "unit/test_placement_plan.py::"
            "test_nothing_leaves_for_a_copy_that_cannot_be_relied_on_if_asked",
        ),
    ),
)

_HOT = (
    Mutation(
        "hot-verified-after-a-start",
        "SECURITY: a file of the hot tier is verified at its first use after a restart.",
        "tiers/node/files.py",
        "right = self._checked(path, digest)",
        "right = True",
        (
            "unit/test_tiers_local.py::"
            "test_what_was_there_before_the_machine_started_is_verified_first",
        ),
    ),
    Mutation(
        "hot-verified-always",
        "SECURITY: verify=always verifies at every read.",
        "tiers/node/local.py",
        "if verify and digest_of(out).raw != digest:",
        "if False:",
        (
            "unit/test_tiers_local.py::"
            "test_verify_always_reads_nothing_that_changed_while_the_machine_ran",
            "unit/test_tiers_local.py::test_a_copy_is_verified_where_that_is_asked_for",
        ),
    ),
    Mutation(
        "hot-verified-always-and-not-mapped",
        "SECURITY: verify=always verifies at every read: a file may change under its mapping.",
        "tiers/node/tensors.py",
        "if self._verify or not self._can_map or chunk_size % mapping.PAGE:",
        "if not self._can_map or chunk_size % mapping.PAGE:",
        (
            "unit/test_tiers_local.py::"
            "test_verify_always_reads_nothing_that_changed_while_the_machine_ran",
        ),
    ),
    Mutation(
        "hot-verified-first",
        "SPEC 13: with verify=first a file is compared at its first use in each process.",
        "tiers/node/files.py",
        "if here and (not self.compare_first or self._is_right(digest, fd, found)):",
        "if here:",
        (
            "unit/test_tiers_local.py::test_verify_first_compares_at_the_first_use_in_a_process_and_when_the_file_is_another",
            "integration/test_hot_verified.py::test_a_process_that_verifies_what_it_reads_returns_nothing_that_changed",
        ),
    ),
    Mutation(
        "hot-verified-first-another-file",
        "SPEC 13: with verify=first a file is compared again when it is not the same any more.",
        "tiers/node/files.py",
        "while self._compared.get(digest) != identity:",
        "while digest not in self._compared:",
        (
            "unit/test_tiers_local.py::test_verify_first_compares_at_the_first_use_in_a_process_and_when_the_file_is_another",
        ),
    ),
    Mutation(
        "hot-verified-first-by-ctime",
        "SPEC 13: ... when its device, inode, length, mtime or ctime is another.",
        "tiers/node/files.py",
        "found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns",
        "found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, 0",
        (
            "unit/test_tiers_local.py::test_verify_first_compares_at_the_first_use_in_a_process_and_when_the_file_is_another",
        ),
    ),
    Mutation(
        "hot-verified-first-while-it-changes",
        "SPEC 13: what is trusted is the file that was compared, as it was then.",
        "tiers/node/files.py",
        "if after == identity:",
        "if True:",
        (
            "unit/test_tiers_local.py::test_verify_first_compares_a_file_again_that_changes_while_it_is_compared",
        ),
    ),
    Mutation(
        "hot-verified-first-not-by-name",
        "SPEC 13: with verify=first a file is compared at its first use in each process.",
        "tiers/node/tensors.py",
        "if _native is None or self._files.compare_first:",
        "if _native is None:",
        (
            "unit/test_tiers_local.py::test_verify_first_compares_at_the_first_use_in_a_process_and_when_the_file_is_another",
        ),
    ),
    Mutation(
        "hot-scrub-continues",
        "Explanation 18: the scrub continues where any process of the node stopped.",
        "tiers/node/local.py",
        "                    note_scrubbed(fd, digest)\n",
        "",
        ("unit/test_tiers_local.py::test_the_scrub_goes_on_where_any_process_stopped",),
    ),
    Mutation(
        "hot-scrub-of-one",
        "Explanation 18: the scrub compares 16 MiB a minute for the node.",
        "tiers/node/files.py",
        "yield fd if try_lock(fd) else None",
        "yield fd",
        ("unit/test_tiers_local.py::test_one_process_of_a_node_scrubs_at_a_time",),
    ),
    Mutation(
        "hot-scrub-of-a-read-only-disk",
        "tiers.node.directory: a disk that became read-only can still be read.",
        "tiers/node/local.py",
        "            self._dir.fill_failed(error)\n        self.stats.count(scrubbed_bytes",
        "            self._dir.read_failed(error)\n        self.stats.count(scrubbed_bytes",
        (
            "unit/test_tiers_local.py::"
            "test_a_scrub_that_cannot_note_its_place_is_no_failure_of_reading",
        ),
    ),
    Mutation(
        "hot-scrub-behind-a-bad-sector",
        "Explanation 18: the scrub continues; a file that cannot be read is wrong as well.",
        "tiers/node/local.py",
        "            right = False\n            self._dir.read_failed(error, digest)\n",
        "            raise\n",
        ("unit/test_tiers_local.py::test_the_scrub_goes_on_behind_a_file_that_cannot_be_read",),
    ),
    Mutation(
        "hot-scrub-by-agents",
        "Explanation 18: the scrub runs in agents, too.",
        "serving/agent.py",
        "        self._store._parts.upkeep.start()  # it verifies this node's hot tier, for one\n",
        "",
        (
            "integration/test_hot_verified.py::test_the_agent_verifies_the_hot_tier_though_it_loads_nothing",
        ),
    ),
    Mutation(
        "gateway-id-of-verified-bytes",
        "Explanation 18: git's id of a small file is made of bytes that were compared just then.",
        "serving/hub/tree.py",
        "FileView(model._opened.content.verified(), file).read()",
        "model.read_file(file.path)",
        (
            "integration/test_hot_verified.py::test_the_gateways_id_of_a_small_file_is_made_of_verified_bytes",
        ),
    ),
    Mutation(
        "hot-base-of-a-part",
        "tiers.node.local: a hot copy that proves wrong is dropped and the durable one is used.",
        "modelstore/chunks/decode.py",
        "                if not at.bases:\n                    raise\n",
        "                raise\n",
        (
            "integration/test_stored_again.py::"
            "test_rows_of_a_delta_whose_base_has_changed_on_this_node",
        ),
    ),
    Mutation(
        "hot-length",
        "tiers.node.files: a chunk's file has exactly its length.",
        "tiers/node/files.py",
        "here = stat.S_ISREG(found.st_mode) and found.st_size == size",
        "here = stat.S_ISREG(found.st_mode)",
        ("unit/test_tiers_local.py::test_a_file_of_another_length_is_no_chunk",),
    ),
    Mutation(
        "hot-directory-of-everybody",
        "SECURITY: the node's own disk is trusted, and so no directory that others write to.",
        "tiers/node/files.py",
        "            self.owners.make(path)\n",
        "            path.mkdir(exist_ok=True)\n",
        ("unit/test_tiers_local.py::test_a_directory_that_everybody_may_write_to_is_not_used",),
    ),
    Mutation(
        "folders-others-write-to",
        "SECURITY: Spool, cache and hot folders that others may write to are refused.",
        "folders.py",
        "elif self.group is None and found.st_mode & _OTHERS:",
        "elif False:",
        ("integration/test_folders.py::test_a_folder_that_others_may_write_to_is_refused",),
    ),
    Mutation(
        "folders-of-other-users",
        "SECURITY: Spool, cache and hot folders of another user are refused.",
        "folders.py",
        "elif self.group is None and found.st_uid != user:",
        "elif False:",
        ("integration/test_folders.py::test_a_folder_of_another_user_is_refused",),
    ),
    Mutation(
        "spool-folder-of-other-users",
        "SECURITY: Spool, cache and hot folders of another user are refused.",
        "serving/hub/spool.py",
        "            ALONE.make(root)\n",
        "            root.mkdir(parents=True, exist_ok=True, mode=0o700)\n",
        ("integration/test_folders.py::test_nothing_of_a_folder_of_another_user_is_used",),
    ),
    Mutation(
        "cache-folder-of-other-users",
        "SECURITY: Spool, cache and hot folders of another user are refused.",
        "modelstore/home/index.py",
        "                ALONE.make(self._path.parent, above=1)\n",
        "                self._path.parent.mkdir(parents=True, exist_ok=True)\n",
        ("integration/test_folders.py::test_nothing_of_a_folder_of_another_user_is_used",),
    ),
    Mutation(
        "no-fixed-name-below-tmp",
        "Settings: without a home directory the cache ends with its process.",
        "config.py",
        "        return _of_this_process()\n",
        '        return Path(tempfile.gettempdir()) / "tierstore-cache"\n',
        (
            "integration/test_folders.py::"
            "test_without_a_home_directory_the_cache_has_no_name_that_others_could_take",
        ),
    ),
    Mutation(
        "hot-quota",
        "tiers.node.local: the quota is of all processes of the node together.",
        "tiers/node/book.py",
        "if used_bytes > self._high_bytes:\n"
        "            self.make_room(used_bytes - self._low_bytes)",
        "pass",
        ("unit/test_tiers_local.py::test_above_the_high_mark_it_is_emptied_down_to_the_low_one",),
    ),
    Mutation(
        "hot-pins",
        "SPEC 13: the chunks of a pinned version are not evicted from hot tiers.",
        "tiers/node/book.py",
        "if digest in self.sizes and digest not in self.pinned:",
        "if digest in self.sizes:",
        ("unit/test_tiers_local.py::test_pinned_chunks_stay",),
    ),
    Mutation(
        "frame-is-the-one-of-the-layout",
        "SPEC 3: A reader MUST check that its digest is the one it wants.",
        "modelstore/chunks/decode.py",
        "head = parse_frame_head(frame, name, place.digest)",
        "head = parse_frame_head(frame, name)",
        ("integration/test_forged_frames.py::test_a_layout_that_finds_another_chunk_is_damaged",),
    ),
    Mutation(
        "shared-frame-removed",
        "tiers.hot.shared: a frame that fails its checks is a miss that is removed.",
        "tiers/hot/shared.py",
        "            self.blobs.delete([frame_key(place)])\n",
        "            return\n",
        ("unit/test_tiers_shared.py::test_a_bad_frame_is_removed_and_a_newer_one_is_not",),
    ),
    Mutation(
        "breaker",
        "How-to, tiers: A durable tier that is down costs two timeouts and is skipped then.",
        "tiers/guard/breaker.py",
        "if self._failures < self._limit:\n                return",
        "if self._failures:\n                return",
        ("unit/test_tiers_guarded.py::test_two_failures_in_a_row_and_nobody_waits_any_more",),
    ),
    Mutation(
        "late-bytes-reach-nobody",
        "tiers.guard.deadline: whatever a call that was left behind does later harms nobody.",
        "tiers/guard/deadline.py",
        "own = [RangeRead(r.key, r.start, memoryview(bytearray(r.out.nbytes))) for r in reads]",
        "own = list(reads)",
        ("unit/test_tiers_deadline.py::test_what_comes_late_reaches_no_buffer_of_the_caller",),
    ),
    Mutation(
        "listing-that-stalls-is-not-whole",
        "Explanation 9: A call has a deadline, a mount that hangs is left behind.",
        "tiers/guard/deadline.py",
        'raise _too_long(f"listing {self.url}", self._timeout_s) from None',
        "return",
        ("unit/test_tiers_deadline.py::test_a_listing_that_stalls_ends",),
    ),
    Mutation(
        "index-rows-checked",
        "SPEC 8: an index segment is only ever a hint.",
        "modelstore/home/index.py",
        "if stored != _sum(digest, *columns):",
        "if False:",
        ("unit/test_modelstore_index.py::test_no_flipped_bit_gives_a_wrong_place",),
    ),
    Mutation(
        "moves-in-a-circle",
        "SPEC 8: When they lead to no chunk, what was wrong at first is what the reader reports.",
        "modelstore/chunks/moves.py",
        "if pack in behind:",
        "if False:",
        ("integration/test_save_load_dedup.py::test_moves_in_a_circle_lead_nowhere",),
    ),
    Mutation(
        "moves-that-lose-a-chunk",
        "SPEC 8: the frames of a pack that was rewritten are now in those packs.",
        "modelstore/chunks/moves.py",
        "if self._numbers.get(pack, 1) == 1:",
        "if True:",
        ("integration/test_save_load_dedup.py::test_a_move_that_lost_a_chunk_is_damage",),
    ),
    Mutation(
        "moves-of-another-pack",
        "SPEC 8: moves/<pack hex> holds the pack.",
        "modelstore/chunks/moves.py",
        "if move.pack != pack.hex():",
        "if False:",
        ("integration/test_quarantine.py::test_a_move_of_another_pack_is_damage",),
    ),
    Mutation(
        "moves-followed-when-damaged",
        "SPEC 8: A reader follows the moves of a pack when no tier has a good copy of a frame.",
        "modelstore/chunks/decode.py",
        "                if not self._leads_on(at, first) or",
        "                if damage or not self._leads_on(at, first) or",
        ("integration/test_quarantine.py::test_a_model_that_is_open_reads_on_once_it_is_healed",),
    ),
    Mutation(
        "moves-followed-when-archived",
        "SPEC 8: A reader follows the moves of a pack when it lies in an archive alone.",
        "modelstore/chunks/reader.py",
        "            except (NotFound, BackendError) as error:\n                self._read_each",
        "            except NotFound as error:\n                self._read_each",
        (
            "integration/test_archive.py::test_what_is_archived_is_healed_by_a_save",
            "integration/test_quarantine.py::test_moves_are_followed_while_tiers_are_down",
        ),
    ),
    Mutation(
        "moves-followed-for-parts",
        "SPEC 8: A reader follows the moves of a pack when it lies in an archive alone.",
        "modelstore/chunks/decode.py",
        "                except BackendError as error:\n",
        "                except TypeError as error:\n",
        ("integration/test_archive.py::test_what_is_archived_is_healed_by_a_save",),
    ),
    Mutation(
        "moves-followed-for-a-base",
        "SPEC 8: A reader follows the moves of a pack when it cannot read a base of a frame.",
        "modelstore/chunks/reader.py",
        "            except (NotFound, BackendError) as error:  # of a base\n",
        "            except TypeError as error:\n",
        (
            "integration/test_archive.py::test_a_delta_on_an_archived_base_is_healed",
            "integration/test_quarantine.py::test_a_delta_on_a_base_that_is_gone_is_healed",
        ),
    ),
    Mutation(
        "moves-followed-when-cut-short",
        "SPEC 8: A reader follows the moves of a pack when no tier has a good copy of a frame.",
        "modelstore/chunks/reader.py",
        "                self._read_each(wanted)\n",
        "                raise\n",
        ("integration/test_quarantine.py::test_what_is_cut_short_is_healed",),
    ),
    Mutation(
        "moves-into-an-archive",
        "SPEC 8: When they lead to no chunk, what was wrong at first is what the reader reports.",
        "modelstore/chunks/moves.py",
        "for error in self._unread.get(pack, {}).values():",
        "for error in ():",
        ("integration/test_archive.py::test_a_pack_that_moved_into_an_archive_can_be_restored",),
    ),
    Mutation(
        "moves-drop-tracebacks",
        "Explanation: what was read is freed with its last reference.",
        "modelstore/chunks/decode.py",
        "            failed = first = damage = missing = None\n",
        "            pass\n",
        ("integration/test_memory_freed.py::test_nor_does_what_is_read_by_way_of_moves",),
    ),
    Mutation(
        "moves-into-unfit-packs",
        "SPEC 11: unless one into a pack that is not unfit does already.",
        "modelstore/saving/healing.py",
        "            self._unfit |= unfit_packs(self._home, {place.pack: sizes[place.pack]})\n",
        "",
        ("integration/test_archive.py::test_what_was_stored_anew_is_archived_as_well",),
    ),
    Mutation(
        "archives-relied-on",
        "SPEC 13: no save reuses its chunks.",
        "tiers/durable/tiers.py",
        "{tier.name for tier in self.tiers if tier.archive is not None}",
        "set()",
        ("integration/test_archive.py::test_nothing_relies_on_an_archived_copy",),
    ),
    Mutation(
        "packs-in-use-by-way-of-moves",
        "modelstore/placing/packgraph.py: instead of a pack that cannot be relied on.",
        "modelstore/placing/packgraph.py",
        "        if moved.isdisjoint(",
        "        if moved or moved.isdisjoint(",
        ("integration/test_archive.py::test_what_was_stored_anew_is_what_the_version_needs",),
    ),
    Mutation(
        "heat-by-way-of-moves",
        "SPEC 13: the heat of a pack is a count of the bytes of its frames that were read.",
        "modelstore/chunks/reader.py",
        "places = [self._pool.moves.current(want.place) for want in self._wants.values()]",
        "places = [want.place for want in self._wants.values()]",
        ("integration/test_archive.py::test_what_was_stored_anew_is_what_the_version_needs",),
    ),
    Mutation(
        "check-reads-by-way-of-moves",
        "modelstore/care/check.py: every chunk, through moves what has no copy to be read.",
        "modelstore/care/check.py",
        "archived = set().union(*self._copies.values()) - moved",
        "archived = set().union(*self._copies.values())",
        ("integration/test_archive.py::test_a_healed_part_that_rots_is_found",),
    ),
    Mutation(
        "moves-numbered",
        "SPEC 8: and where that lacks a chunk moves/<pack hex>-<n>.",
        "modelstore/chunks/moves.py",
        "            number += 1\n",
        "            number += 999\n",
        (
            "integration/test_quarantine.py::test_what_is_healed_in_parts_is_healed",
            "integration/test_quarantine.py::test_numbered_moves_are_followed_to_the_end",
        ),
    ),
    Mutation(
        "moves-leave-a-run-where-it-was-planned",
        "modelstore/chunks/reader.py: a run is decoded where it was planned.",
        "modelstore/chunks/reader.py",
        "            place, room = want.place, self._room(want)\n",
        "            place, room = self._pool.moves.current(want.place), self._room(want)\n",
        ("integration/test_quarantine.py::test_what_is_healed_in_parts_is_healed",),
    ),
)

_QUARANTINE = (
    Mutation(
        "mover-highest-lease",
        "SPEC 13: Its holder MUST stop deleting when there is a higher one.",
        "modelstore/placing/moverlease.py",
        "if self._highest() > self._lease.seq:",
        "if self._highest() == self._lease.seq + 1:",
        ("integration/test_mover.py::test_a_mover_that_others_came_after_knows",),
    ),
    Mutation(
        "mover-number-that-was-free-again",
        "SPEC 13: Its holder MUST stop deleting when there is a higher one.",
        "modelstore/placing/moverlease.py",
        "        self._refuse_if_followed()  "
        "# the number was free again, if others came and went\n",
        "",
        (
            "integration/test_mover.py::"
            "test_a_mover_that_is_overtaken_while_it_takes_a_number_stops",
        ),
    ),
    Mutation(
        "leases-count-time-asleep",
        "modelstore/home/clock.py: it runs on while the machine sleeps.",
        "modelstore/home/clock.py",
        'getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))',
        'getattr(time, "CLOCK_MONOTONIC", None)',
        ("unit/test_modelstore_leases.py::test_the_clock_of_leases_counts_the_time_asleep",),
    ),
    Mutation(
        "store-id-before-an-entry",
        "SPEC 9: right after it has seen that config.json still names the store that it opened.",
        "modelstore/home/refs.py",
        "            self._check_store(found.pop(CONFIG, None))\n",
        "            found.pop(CONFIG, None)\n",
        (
            "integration/test_home_vanishes.py::"
            "test_below_a_mount_point_that_is_empty_nothing_is_published",
        ),
    ),
    Mutation(
        "sync-of-a-folder-fails",
        "docs/explanation/limits.md: a sync that fails is an error.",
        "blobs/local/store.py",
        "        except OSError as error:\n            raise NotDurable(",
        "        except OSError as error:\n            return\n            raise NotDurable(",
        (
            "unit/test_blobs_local.py::test_a_failing_sync_is_an_error",
            "integration/test_sync.py::test_an_entry_that_may_not_last_says_so",
        ),
    ),
    Mutation(
        "readable-is-not-durable",
        "docs/how-to/operations.md: the save fails, also where what it wrote can be read.",
        "modelstore/home/once.py",
        "    except NotDurable:  # it is there, so looking would call it a success\n"
        "        raise\n",
        "",
        (
            "integration/test_sync.py::test_an_entry_that_may_not_last_says_so",
            "integration/test_sync.py::test_a_movers_lease_that_may_not_last_is_none",
        ),
    ),
    Mutation(
        "fold-that-may-not-last",
        "docs/how-to/operations.md: a failed fsync is a failure.",
        "modelstore/patches/fold.py",
        "    except NotDurable:\n        raise\n",
        "",
        ("integration/test_sync.py::test_a_fold_that_may_not_last_is_none",),
    ),
    Mutation(
        "marked-packs",
        "SPEC 8: A writer MUST NOT reuse a chunk in a marked pack.",
        "modelstore/home/confirm.py",
        "return unfit | (home.quarantine.packs() & sizes.keys() if sizes else set())",
        "return unfit",
        ("integration/test_quarantine.py::test_a_pack_that_is_marked_while_a_save_runs",),
    ),
    Mutation(
        "mark-after-reading-again",
        "SPEC 8: only by a client that has itself just read the copy in every durable tier.",
        "modelstore/chunks/examine.py",
        "    if found.bad and not found.good:\n",
        "    if suspects or (found.bad and not found.good):\n"
        '        found.bad.setdefault("home", "")\n',
        ("integration/test_quarantine.py::test_a_read_that_fails_once_marks_nothing",),
    ),
    Mutation(
        "mark-no-pack-with-a-good-copy",
        "SPEC 8: and found each of them damaged.",
        "modelstore/chunks/examine.py",
        "            found.good = True\n",
        "            found.good = False\n",
        ("integration/test_quarantine.py::test_a_mark_is_lifted_once_a_copy_is_good",),
    ),
    Mutation(
        "mark-at-least-one-copy",
        "SPEC 8: in every durable tier that could be asked, at least one.",
        "modelstore/chunks/examine.py",
        "    if found.bad and not found.good:\n",
        '    found.bad.setdefault("nowhere", "")\n    if not found.good:\n',
        ("integration/test_quarantine.py::test_a_tier_that_cannot_be_asked_says_nothing",),
    ),
    Mutation(
        "mark-of-another-pack",
        "SPEC 8: quarantine/<pack hex> holds the pack.",
        "format/layout.py",
        "if mark.pack != pack:",
        "if False:",
        ("integration/test_quarantine.py::test_a_mark_of_another_pack_is_damaged",),
    ),
    Mutation(
        "mark-that-cannot-be-read",
        "SPEC 8: a mark that cannot be read marks its pack all the same.",
        "modelstore/home/quarantine.py",
        "return {bytes.fromhex(match[1]) for match in found if match}",
        "packs = {bytes.fromhex(match[1]) for match in found if match}\n"
        "        return {pack for pack in packs if self._read(pack) is not None}",
        (
            "integration/test_quarantine.py::"
            "test_a_mark_that_cannot_be_read_marks_its_pack_and_is_written_anew",
        ),
    ),
    Mutation(
        "frames-of-other-content",
        "SPEC 8: a pack is damaged where a frame decodes to other bytes than its digest's.",
        "tiers/durable/packcheck.py",
        "        if not head.bases:\n",
        "        if False:\n",
        (
            "integration/test_quarantine.py::"
            "test_a_frame_of_other_content_is_damage_although_its_checksums_are_right",
        ),
    ),
    Mutation(
        "layout-kept",
        "SPEC 11: When there is a layout of the manifest already, it is kept.",
        "modelstore/saving/writer.py",
        "if self._home.blobs.put_if_absent(key, sealed):",
        "if self._home.blobs.put(key, sealed) is None:",
        (
            "integration/test_quarantine.py::test_the_layout_of_equal_content_is_kept",
            "integration/test_quarantine.py::test_a_layout_whose_packs_are_gone_is_kept_and_healed",
        ),
    ),
    Mutation(
        "kept-layout-healed",
        "SPEC 11: The chunks that it places in unfit packs get moves.",
        "modelstore/saving/writer.py",
        "        self._heal(self._healing.lost_in(table, self._state.order))\n",
        "",
        ("integration/test_quarantine.py::test_a_delta_that_stands_in_for_a_chunk_is_none",),
    ),
    Mutation(
        "older-versions-healed",
        "SPEC 11: Every chunk of the save that is known to lie in an unfit pack gets a move.",
        "modelstore/saving/writer.py",
        "        self._heal(self._lost())\n",
        "",
        (
            "integration/test_quarantine.py::test_what_is_healed_in_parts_is_healed",
            "integration/test_quarantine.py::"
            "test_a_version_that_holds_the_same_delta_is_healed_as_well",
        ),
    ),
    Mutation(
        "moved-chunks-standalone",
        "SPEC 8: A move of a chunk that is not verbatim holds it as a standalone frame.",
        "modelstore/saving/writer.py",
        "[one for one in every if again or self._place(one).bases]",
        "[]",
        ("integration/test_quarantine.py::test_a_delta_that_stands_in_for_a_chunk_is_none",),
    ),
    Mutation(
        "unnamed-packs-not-indexed",
        "SPEC 11: New packs that neither the layout nor a move names get no index segment.",
        "modelstore/saving/writer.py",
        "if place.pack in self._named]",
        "if place.pack]",
        ("integration/test_quarantine.py::test_the_layout_of_equal_content_is_kept",),
    ),
    Mutation(
        "marked-places-stand-back",
        "modelstore/home/index.py: a place in a quarantined pack replaces none.",
        "modelstore/home/index.py",
        "db.executemany(_ADD_UNFIT, rows[True])",
        "db.executemany(_ADD, rows[True])",
        (
            "integration/test_quarantine.py::"
            "test_a_place_in_a_marked_pack_stands_back_in_a_fresh_index",
        ),
    ),
    Mutation(
        "rebase-confirms",
        "SPEC 11: 4. it confirms that the new packs are there and not condemned.",
        "modelstore/care/rebase.py",
        "if gone_packs(self._home, self.packer.pack_sizes):",
        "if False:",
        ("integration/test_quarantine.py::test_a_rebase_writes_no_layout_of_packs_that_are_gone",),
    ),
)

_NAMES = (
    Mutation(
        "variant-only-when-asked",
        "SPEC 14.1: A reader MUST NOT return a variant where none was named or preferred.",
        "modelstore/names/names.py",
        "        if name is None:\n"
        "            return version\n"
        "        found = self.variant(version, name)",
        "        if name is None:\n"
        "            return next(iter(self.variants(version)), version)\n"
        "        found = self.variant(version, name)",
        ("integration/test_releases.py::test_no_variant_stands_for_a_version_that_was_named",),
    ),
    Mutation(
        "rollout-gates",
        "SPEC 14.3: A gate holds when the mean of its metric is within the limit.",
        "modelstore/names/rollout.py",
        "if not state.passes:",
        "if False:",
        ("integration/test_rollout.py::test_gates_wait_for_reports_and_close",),
    ),
    Mutation(
        "rollout-gates-without-reports",
        "SPEC 14.3: with no report it does not hold.",
        "modelstore/names/rollout.py",
        "if state.passes is None:",
        "if False:",
        ("integration/test_rollout.py::test_gates_wait_for_reports_and_close",),
    ),
    Mutation(
        "rollout-reports-of-this-stage",
        "SPEC 14.3: reported since the stage began, by the storage's own clock.",
        "modelstore/names/reports.py",
        "if info.mtime < began:",
        "if False:",
        ("integration/test_rollout.py::test_gates_wait_for_reports_and_close",),
    ),
    Mutation(
        "rollout-one-of-two",
        "SPEC 14.2: Each is appended only directly behind the entry that its writer saw.",
        "modelstore/names/rollout.py",
        "if last is None or last.seq != seen.seq:",
        "if False:",
        (
            "integration/test_rollout.py::"
            "test_a_step_from_what_was_seen_before_another_ones_is_refused",
        ),
    ),
    Mutation(
        "rollout-paused",
        "SPEC 14.2: paused: whether steps are refused.",
        "modelstore/names/rollout.py",
        "if status.rollout.paused:",
        "if False:",
        ("integration/test_rollout.py::test_a_pause_holds_everything",),
    ),
    Mutation(
        "rollout-windows",
        "SPEC 14.2: steps lie in one of the windows.",
        "modelstore/names/rollout.py",
        "if not inside:",
        "if False:",
        ("integration/test_rollout.py::test_steps_are_not_early_and_keep_to_windows",),
    ),
    Mutation(
        "rollout-pins",
        "SPEC 14.2: While a rollout runs its old version is pinned in hot and warm.",
        "modelstore/names/rollout.py",
        "self._hold(log, contents_of(self._home, self._version(model, last)))",
        "pass",
        ("integration/test_rollout.py::test_the_old_version_is_pinned_until_it_is_over",),
    ),
    Mutation(
        "rollout-nothing-else-moves",
        "SPEC 14.2: No other action is allowed while a rollout runs.",
        "modelstore/names/names.py",
        "def _refuse_in_rollout(model: str, alias: str, last: RefEntry | None) -> None:\n"
        "    if last is not None and last.rollout is not None:",
        "def _refuse_in_rollout(model: str, alias: str, last: RefEntry | None) -> None:\n"
        "    if False:",
        ("integration/test_rollout.py::test_an_alias_in_a_rollout_is_not_moved_by_others",),
    ),
    Mutation(
        "rollout-labels",
        "SPEC 14.2: nodes without all of these labels get the old version.",
        "modelstore/names/turns.py",
        "if any(labels.get(name) != value for name, value in rollout.labels.items()):",
        "if False:",
        ("unit/test_modelstore_turns.py::test_nodes_without_the_labels_wait_for_the_last_stage",),
    ),
    Mutation(
        "alias-moved-by-somebody-else",
        "How-to, patches: two trainers cannot undo each other's work.",
        "modelstore/names/names.py",
        "if was is not None and (last is None or last.version != was):",
        "if False:",
        ("integration/test_patches.py::test_an_alias_that_moved_meanwhile_stays",),
    ),
    Mutation(
        "release-member-checked",
        "SPEC 14.4: A reader MUST check that entry version of the member's log names manifest.",
        "modelstore/names/members.py",
        "if entry is None or entry.manifest != member.manifest.hex():",
        "if entry is None:",
        ("integration/test_releases.py::test_a_member_whose_log_names_another_manifest_is_damage",),
    ),
    Mutation(
        "release-or-model",
        "SPEC 14.4: one name never holds versions of both kinds.",
        "modelstore/names/names.py",
        "if last is not None and (last.action == RELEASED) != release:",
        "if False:",
        ("integration/test_releases.py::test_mistakes_publish_nothing",),
    ),
    Mutation(
        "patch-fits-its-base",
        "SPEC 7.1: names, dtypes and shapes MUST be those of the base.",
        "modelstore/loading/patchparts.py",
        "if entries.get(name) != (part.dtype, part.shape):",
        "if False:",
        (
            "integration/test_patches.py::"
            "test_a_stored_patch_of_other_tensors_than_its_bases_is_damaged",
        ),
    ),
    Mutation(
        "writers-lease",
        "SPEC 11: 1. lease.",
        "modelstore/home/leases.py",
        "    def __enter__(self) -> Self:\n        self.renew()",
        "    def __enter__(self) -> Self:",
        ("unit/test_modelstore_leases.py::test_a_writer_holds_one_lease_until_it_is_done",),
    ),
    Mutation(
        "store-inside-its-source",
        "modelstore.places: a source that holds the store is refused.",
        "modelstore/places.py",
        "        if how := overlap(one, other):",
        "        if (how := overlap(one, other)) and False:",
        (
            "integration/test_foreign_config.py::"
            "test_a_directory_that_holds_the_store_is_not_saved_into_it",
        ),
    ),
    Mutation(
        "links-to-folders",
        "SECURITY: Links to folders are refused.",
        "modelstore/saving/source.py",
        "if (Path(folder) / name).is_symlink():",
        "if False:",
        ("unit/test_modelstore_source.py::test_links_to_folders_are_refused_unless_excluded",),
    ),
    Mutation(
        "pickles-by-content",
        "SECURITY: Pickles of protocol 2 and up are refused whatever their names are.",
        "modelstore/saving/pickles.py",
        "return begin[2] in _FIRST_OPCODES",
        "return False",
        ("unit/test_modelstore_source.py::test_every_pickle_of_protocol_2_and_up_is_one",),
    ),
    Mutation(
        "torch-archives-by-content",
        "SECURITY: torch's archives are refused whatever their names are.",
        "modelstore/saving/pickles.py",
        'return path.lower().endswith(_SUFFIXES) or first.endswith(b"data.pkl")',
        "return path.lower().endswith(_SUFFIXES)",
        ("unit/test_modelstore_source.py::test_pickles_are_refused_with_the_way_out[weights.dat]",),
    ),
    Mutation(
        "pickles-in-commits",
        "SECURITY: pickles are refused in a commit of the gateway as in a save.",
        "modelstore/saving/source.py",
        "        refuse_pickle(path, data[:BEGIN_BYTES], path)\n",
        "",
        ("integration/test_hub_kept.py::test_an_inline_file_that_could_run_is_refused",),
    ),
    Mutation(
        "git-folders-in-commits",
        "SECURITY: The gateway takes no file below .git/.",
        "serving/hub/commits.py",
        'if any(part.lower().rstrip(". ") in {".git", "git~1"} for part in path.split("/")):',
        "if False:",
        ("integration/test_hub_kept.py::test_an_inline_file_that_could_run_is_refused",),
    ),
    Mutation(
        "redis-values-of-another-kind",
        "SECURITY: Redis may hold anything without harm to a result: another kind is a miss.",
        "blobs/redis/client.py",
        'return None if str(error).startswith("WRONGTYPE") else error',
        "return error",
        ("integration/test_redis_odd.py::test_values_of_another_kind_are_no_blobs",),
    ),
    Mutation(
        "redis-news-that-are-no-text",
        "SECURITY: Redis may hold anything without harm: bad news end no thread.",
        "blobs/redis/heat.py",
        "    except UnicodeDecodeError:\n        return None\n",
        "    except KeyError:\n        return None\n",
        ("integration/test_redis_odd.py::test_a_listener_passes_over_what_is_no_news",),
    ),
    Mutation(
        "redis-heat-of-others",
        "SECURITY: Redis may hold anything without harm: heat of others is left out of plans.",
        "tiers/heat/recorder.py",
        "if kind is None or not _HEX.match(name, 1):",
        "if kind is None:",
        ("integration/test_redis_odd.py::test_heat_of_others_is_left_out",),
    ),
    Mutation(
        "urls-without-passwords",
        "SECURITY: Passwords and keys are not shown by a command.",
        "shown.py",
        'password = ":***" if colon else ""',
        'password = f":{user.partition(colon)[2]}" if colon else ""',
        ("unit/test_shown.py::test_no_command_prints_a_password_of_a_url",),
    ),
    Mutation(
        "zstd-declared-length",
        "SPEC-codecs 3: a decoder MUST check the declared size before it allocates.",
        "codecs/zstd.py",
        "if declared != plain_bytes:",
        "if False:",
        ("unit/test_codecs_damage.py::test_a_hostile_zstd_frame_allocates_nothing",),
    ),
)

_GATEWAY = (
    Mutation(
        "gateway-write-rights",
        "How-to, gateway: without the right in the file of tokens nobody writes.",
        "serving/hub/repos.py",
        "if not caller.may_write(name):",
        "if False:",
        ("integration/test_hub_hostile.py::test_writes_reads_and_tokens_need_a_right",),
    ),
    Mutation(
        "gateway-read-rights",
        "How-to, gateway: a token reads what its patterns name, and nothing else.",
        "serving/hub/rights.py",
        "return any(fnmatchcase(model, pattern) for pattern in (*self.read, *self.write))",
        "return True",
        ("integration/test_hub_hostile.py::test_writes_reads_and_tokens_need_a_right",),
    ),
    Mutation(
        "gateway-rights-of-the-name",
        "serving.hub.repos: The text of a request becomes a model here, and the right is asked.",
        "serving/hub/repos.py",
        "        try:\n"
        '            name = check_name("model", text)\n'
        "        except InvalidName:\n"
        "            raise hidden from None\n"
        "        if not caller.may_read(name):\n",
        "        name = ModelRef.parse(text).model\n        if not caller.may_read(text):\n",
        (
            "integration/test_hub_rights.py::"
            "test_no_route_gives_anything_of_a_model_without_its_right[secret@eu-public]",
        ),
    ),
    Mutation(
        "gateway-rights-to-releases",
        "How-to, gateway: a revision that names a release needs the right to read it.",
        "serving/hub/repos.py",
        "if not self.caller.may_read(release):",
        "if False:",
        ("integration/test_hub_rights.py::test_a_release_is_told_to_those_alone_who_may_read_it",),
    ),
    Mutation(
        "gateway-empty-token",
        "serving.hub.rights: Nobody has the empty token.",
        "serving/hub/rights.py",
        'if kind.lower() == "bearer" and not token:',
        "if False:",
        ("integration/test_hub_rights.py::test_an_empty_token_is_nobodys",),
    ),
    Mutation(
        "gateway-sha256-of-nothing",
        "How-to, gateway: the SHA-256 of an empty token is refused at start.",
        "serving/hub/rights.py",
        "if token.sha256 == _OF_NOTHING:",
        "if False:",
        ("integration/test_hub_rights.py::test_an_empty_token_is_nobodys",),
    ),
    Mutation(
        "gateway-get-writes-nothing",
        "How-to, gateway: reading stores nothing.",
        "serving/hub/endpoints.py",
        "await self._hashing.complete(model)",
        "model.fold()",
        ("integration/test_hub_bounds.py::test_reading_stores_nothing",),
    ),
    Mutation(
        "gateway-bodies-behind-rights",
        "How-to, gateway: a body is read only once its caller's right is known.",
        "serving/hub/endpoints.py",
        '            repo = self._repos.writable(text_of(request, "repo"), caller)\n'
        "            async with self._room.body(request, body_bytes) as body:\n",
        "            async with self._room.body(request, body_bytes) as body:\n"
        '                repo = self._repos.writable(text_of(request, "repo"), caller)\n',
        ("integration/test_hub_bounds.py::test_no_body_is_read_before_the_right_is_known",),
    ),
    Mutation(
        "gateway-json-depth",
        "How-to, gateway: JSON is at most 32 levels deep.",
        "serving/hub/bodies.py",
        "for _ in range(_DEEPEST):",
        "for _ in range(_DEEPEST + 1):",
        ("integration/test_hub_bounds.py::test_json_is_at_most_32_levels_deep",),
    ),
    Mutation(
        "gateway-memory-of-bodies",
        "How-to, gateway: bodies that are held whole have at most 128 MiB together.",
        "serving/hub/bodies.py",
        "self._free -= count",
        "pass",
        ("integration/test_hub_bounds.py::test_bodies_wait_for_memory",),
    ),
    Mutation(
        "gateway-refused-bodies",
        "How-to, gateway: of a refused body at most 1 MiB is taken.",
        "serving/hub/connections.py",
        "if self._idle_bytes > _DROPPED_BYTES:",
        "if False:",
        ("integration/test_hub_bounds.py::test_a_body_that_was_refused_is_not_taken_for_long",),
    ),
    Mutation(
        "gateway-connections-per-address",
        "How-to, gateway: one address has at most so many connections.",
        "serving/hub/connections.py",
        "if self._counts[who] >= self._per_address:",
        "if False:",
        ("integration/test_hub_bounds.py::test_connections_in_use_are_not_cut_for_new_ones",),
    ),
    Mutation(
        "gateway-half-open-give-way",
        "How-to, gateway: a connection without a request gives way to a new one.",
        "serving/hub/connections.py",
        "        if not idle:\n            return False\n",
        "        return False\n",
        ("integration/test_hub_bounds.py::test_half_open_connections_give_way",),
    ),
    Mutation(
        "gateway-busy-do-not",
        "How-to, gateway: a connection with a request in progress does not.",
        "serving/hub/connections.py",
        "            self._connections.busy(self._open)\n",
        "            pass\n",
        ("integration/test_hub_bounds.py::test_connections_in_use_are_not_cut_for_new_ones",),
    ),
    Mutation(
        "gateway-time-for-heads",
        "How-to, gateway: the head of a request must have arrived within 10 seconds.",
        "serving/hub/connections.py",
        "self._late = self.loop.call_later(self._head_s, self.transport.close)",
        "pass",
        ("integration/test_hub_bounds.py::test_a_head_that_does_not_arrive_ends_the_connection",),
    ),
    Mutation(
        "gateway-time-for-answers",
        "How-to, gateway: a client that takes nothing for 60 seconds is cut off.",
        "serving/hub/connections.py",
        "if self.cycle is cycle and self.transport.get_write_buffer_size():",
        "if False:",
        ("integration/test_hub_bounds.py::test_an_answer_that_nobody_takes_ends_the_connection",),
    ),
    Mutation(
        "gateway-requests-at-once",
        "How-to, gateway: at most 1,024 requests are in progress.",
        "serving/hub/app.py",
        "if self._now < MOST_AT_ONCE else",
        "if True else",
        ("integration/test_hub_bounds.py::test_requests_at_once_are_limited",),
    ),
    Mutation(
        "gateway-slow-readers",
        "How-to, gateway: a slow reader holds at most 1 MiB.",
        "serving/hub/files.py",
        "timer = asyncio.get_running_loop().call_later(_PROMPT_S, ahead.drop)",
        "timer = asyncio.get_running_loop().call_later(3600, ahead.drop)",
        ("integration/test_hub_bounds.py::test_nothing_is_kept_for_a_client_that_takes_its_time",),
    ),
    Mutation(
        "gateway-read-ahead",
        "How-to, gateway: 64 MiB are read ahead of all clients together.",
        "serving/hub/files.py",
        "if count > self._free:",
        "if False:",
        ("integration/test_hub_bounds.py::test_what_is_read_ahead_of_all_clients_is_bounded",),
    ),
    Mutation(
        "gateway-large-answers",
        "How-to, gateway: a large answer waits for its client in a file.",
        "serving/hub/files.py",
        "if isinstance(answer, FileBody) or len(answer.body) <= _PIECE_BYTES:",
        "if True:",
        ("integration/test_hub_bounds.py::test_a_large_answer_waits_in_a_file",),
    ),
    Mutation(
        "gateway-metadata-of-indexes",
        "How-to, gateway: safetensors-metadata reads headers alone.",
        "serving/hub/reading.py",
        "if not path.endswith(_INDEX) or view.size > _INDEX_BYTES:",
        "if False:",
        ("integration/test_hub_bounds.py::test_safetensors_metadata_reads_headers_alone",),
    ),
    Mutation(
        "gateway-still-read",
        "docs/how-to/gateway.md: 64 MiB are read ahead of all clients together, gone ones too.",
        "serving/hub/files.py",
        "self._room.give_after(self._next)",
        "self._room.give(self._next.taken)",
        ("integration/test_hub_bounds.py::test_what_is_still_being_read_counts_until_it_is_read",),
    ),
    Mutation(
        "gateway-any-writer",
        "docs/how-to/gateway.md: The right is looked at before a body is read.",
        "serving/hub/endpoints.py",
        "if not caller.write:",
        "if False:",
        ("integration/test_hub_upload.py::test_a_card_is_taken_of_those_alone_who_may_write",),
    ),
    Mutation(
        "gateway-xet-token",
        "serving.hub.endpoints: what belongs to a session needs the token of the session.",
        "serving/hub/endpoints.py",
        "        self._spool.check(repo, session, 0, 0, int(expires), signature)\n",
        "",
        ("integration/test_hub_upload.py::test_an_upload_needs_the_token_of_its_session",),
    ),
    Mutation(
        "gateway-xet-content",
        "docs/explanation/0014: files that are put together are compared with their SHA-256.",
        "serving/hub/xet.py",
        "if kept.name != file.sha256:",
        "if False:",
        ("integration/test_hub_upload.py::test_a_file_is_put_together_from_what_was_sent_alone",),
    ),
    Mutation(
        "gateway-xet-name",
        "serving.hub.xet: the name of a xorb is a hash, and no path.",
        "serving/hub/xet.py",
        "if not _HASH.match(name):",
        "if False:",
        ("integration/test_hub_upload.py::test_a_file_is_put_together_from_what_was_sent_alone",),
    ),
    Mutation(
        "gateway-xet-session",
        "serving.hub.xet: a session ends before the spool removes its xorbs.",
        "serving/hub/xet.py",
        "_AFTER_S = 6 * 3600",
        "_AFTER_S = 24 * 3600",
        ("integration/test_hub_upload.py::test_a_session_ends_before_its_xorbs_are_removed",),
    ),
    Mutation(
        "gateway-xet-unpacked",
        "serving.hub.xorbs: a chunk is not unpacked beyond the size in its head.",
        "serving/hub/xorbs.py",
        "decompressor.decompress(stored, max_length=plain + 1)",
        "decompressor.decompress(stored)",
        ("integration/test_hub_xorbs.py::test_a_chunk_is_not_unpacked_beyond_its_size",),
    ),
    Mutation(
        "gateway-xet-term",
        "serving.hub.xorbs: chunks of another size than the shard says are refused.",
        "serving/hub/xorbs.py",
        "        if left:\n",
        "        if False:\n",
        ("integration/test_hub_xorbs.py::test_a_term_that_the_xorb_does_not_have_is_refused",),
    ),
    Mutation(
        "gateway-unknown-token",
        "serving.hub.rights: a token that was taken out of the file ends with its next request.",
        "serving/hub/rights.py",
        'if kind.lower() != "bearer" or found is None:',
        "if found is None:\n"
        "            return self._anonymous\n"
        '        if kind.lower() != "bearer":',
        ("integration/test_hub_hostile.py::test_writes_reads_and_tokens_need_a_right",),
    ),
    Mutation(
        "gateway-broken-tokens",
        "serving.hub.rights: nobody is let in on what a broken file may have meant.",
        "serving/hub/rights.py",
        "                raise HubError(503, f\"the gateway's tokens cannot be read: "
        '{error}") from None',
        '                self._anonymous = Caller(None, ("*",))',
        ("integration/test_hub_hostile.py::test_a_broken_file_of_tokens_lets_nobody_in",),
    ),
    Mutation(
        "gateway-signed-uploads",
        "serving.hub.spool: permission to upload travels in the URL that was given out.",
        "serving/hub/spool.py",
        "if not hmac.compare_digest(right.encode(), given.encode()) or expires < time.time():",
        "if expires < time.time():",
        ("integration/test_hub_hostile.py::test_uploads_need_a_url_that_was_given_out",),
    ),
    Mutation(
        "gateway-signatures-expire",
        "serving.hub.spool: the permission expires.",
        "serving/hub/spool.py",
        "if not hmac.compare_digest(right.encode(), given.encode()) or expires < time.time():",
        "if not hmac.compare_digest(right.encode(), given.encode()):",
        ("integration/test_hub_hostile.py::test_uploads_are_swept_and_signatures_expire",),
    ),
    Mutation(
        "gateway-upload-sha256",
        "serving.hub.spool: A file is there under the SHA-256 of what arrived, or not at all.",
        "serving/hub/spool.py",
        "if part == 0 and (count, sha.hexdigest()) != (size, oid):",
        "if False:",
        ("integration/test_hub_hostile.py::test_uploads_need_a_url_that_was_given_out",),
    ),
    Mutation(
        "gateway-upload-size",
        "serving.hub.bodies: never more than is allowed.",
        "serving/hub/bodies.py",
        "if total > most:",
        "if total > most + 1000:",
        (
            "integration/test_hub_hostile.py::"
            "test_a_body_of_no_declared_length_is_cut_off_at_the_limit",
        ),
    ),
)

_ARCHITECTURE = (
    Mutation(
        "rooms-entered-by-the-door",
        "test_architecture: What lies in a folder is private to it unless __all__ names it.",
        "modelstore/placing/warming.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n"
        "\n"
        "from tierstore.tiers.node.book import HotBook  # noqa: F401\n",
        ("test_architecture.py::test_rooms_are_entered_by_the_door",),
    ),
    Mutation(
        "imports-go-down",
        "Explanation 16: A folder imports only what is below it.",
        "format/checks.py",
        "def xxh3(data: Buffer) -> int:\n",
        "def _up() -> None:\n"
        "    import tierstore.modelstore.store  # noqa: F401\n"
        "\n"
        "\n"
        "def xxh3(data: Buffer) -> int:\n",
        ("test_architecture.py::test_imports_go_down",),
    ),
    Mutation(
        "rooms-entered-from-above",
        "test_architecture: and so does a room in a folder that has rooms of its own.",
        "modelstore/home/pins.py",
        "class Pins:\n",
        "def _up() -> None:\n"
        "    import tierstore.modelstore.saving.writer  # noqa: F401\n"
        "\n"
        "\n"
        "class Pins:\n",
        ("test_architecture.py::test_rooms_are_entered_from_above",),
    ),
    Mutation(
        "placement-is-pure",
        "Explanation 10: Deciding is pure code without I/O and without a clock.",
        "placement/plan.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\nimport time  # noqa: F401\n",
        ("test_architecture.py::test_placement_does_no_io",),
    ),
    Mutation(
        "environment-read-in-one-place",
        "Explanation 16: Only config.py reads the environment.",
        "ids.py",
        "def split_digests(column: bytes) -> list[bytes]:\n",
        "def _who() -> str | None:\n"
        '    return os.environ.get("USER")\n'
        "\n"
        "\n"
        "def split_digests(column: bytes) -> list[bytes]:\n",
        ("test_architecture.py::test_only_config_reads_the_environment",),
    ),
)

_GUARDED = "unit/test_guards.py::test_an_error_of_ours_in_a_guarded_place"
_OURS_PASS = "Errors: a block that guards against OSErrors and may run code of ours lets ours pass"
_API = (
    Mutation(
        "missing-tensor-is-a-key-error",
        "Errors: TensorMissing is a KeyError, as of any mapping.",
        "errors.py",
        "class TensorMissing(NotFound, KeyError):",
        "class TensorMissing(NotFound):",
        (
            "unit/test_errors.py::test_a_missing_tensor_is_a_missing_key",
            "unit/test_errors.py::test_errors_are_also_what_python_would_raise",
        ),
    ),
    Mutation(
        "unreachable-store-is-no-full-disk",
        f"{_OURS_PASS}: of a store that fails while its files are exported.",
        "modelstore/loading/export.py",
        "    except TierstoreError:\n        raise\n    except OSError as error:",
        "    except OSError as error:",
        (f"{_GUARDED}[modelstore.loading.export:explained#1-Unreachable]",),
    ),
    Mutation(
        "errors-of-a-local-store-stay",
        f"{_OURS_PASS}: of what a local store has said already.",
        "blobs/local/store.py",
        "        except TierstoreError:\n            raise\n        except OSError as error:",
        "        except OSError as error:",
        (f"{_GUARDED}[blobs.local.store:LocalStore._errors#1-PermissionDenied]",),
    ),
    Mutation(
        "unreachable-store-is-no-broken-terminal",
        "Commands: what a command has printed before it fails stays printed.",
        "cli/kit/app.py",
        "if isinstance(error, OSError) and not isinstance(error, TierstoreError):",
        "if isinstance(error, OSError):",
        ("unit/test_guards.py::test_a_command_that_fails_keeps_what_it_printed",),
    ),
    Mutation(
        "failing-store-is-no-empty-folder",
        "serving/filesystem.py: a store that fails is an error, a folder that is missing is empty.",
        "serving/filesystem.py",
        "    if not isinstance(error, FileNotFoundError):\n        raise error",
        "    return",
        ("unit/test_guards.py::test_a_store_that_fails_is_not_an_empty_folder",),
    ),
    Mutation(
        "tables-of-notebooks-are-escaped",
        "shown.py: everything in a table is escaped; names come from whoever saves.",
        "shown.py",
        "first, *others = map(escape, cells)",
        "first, *others = cells",
        (
            "unit/test_shown.py::test_tables_escape_everything",
            "unit/test_shown.py::test_a_model",
        ),
    ),
    Mutation(
        "one-name-is-no-list-of-names",
        "Reference, Model.load, Store.save, Releases.create: UsageError for one text as a list.",
        "arguments.py",
        "if isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable):",
        "if False:",
        (
            "unit/test_arguments.py::test_one_name_where_names_are_meant",
            "unit/test_arguments.py::test_one_pattern_where_patterns_are_meant",
            "unit/test_arguments.py::test_what_are_no_members",
        ),
    ),
    Mutation(
        "exclude-is-a-list-of-patterns",
        "Reference, Store.save: exclude takes patterns; the letters of one are none.",
        "modelstore/saving/source.py",
        """exclude = as_texts("exclude", exclude, "['*.bin', 'checkpoints/*']")""",
        "exclude = list(exclude)",
        ("unit/test_arguments.py::test_one_pattern_where_patterns_are_meant",),
    ),
    Mutation(
        "numbers-by-model-are-no-references",
        "Reference, Releases.create: refs are references; a dict would mean the newest versions.",
        "modelstore/names/releases.py",
        "if isinstance(refs, Mapping):",
        "if False:",
        ("unit/test_arguments.py::test_what_are_no_members",),
    ),
    Mutation(
        "role-of-a-tier-stays",
        "Reference, TierAdmin.set: name and role stay; as a hot tier nobody would find its packs.",
        "admin/manage.py",
        'if field in {"name", "role"}:',
        "if False:",
        ("unit/test_arguments_table.py::test_a_wrong_argument_is_named",),
    ),
    Mutation(
        "state-of-a-tier-is-not-set",
        "Reference, TierAdmin.set: drain and undrain change the state.",
        "admin/manage.py",
        'if field == "state":',
        "if False:",
        ("unit/test_arguments_table.py::test_a_wrong_argument_is_named",),
    ),
    Mutation(
        "tier-of-wrong-types",
        "Reference, init: a wrong tier is refused before anything is made.",
        "modelstore/home/tierlist.py",
        "        read_back(spec)\n",
        "        pass\n",
        ("unit/test_arguments_table.py::test_a_refused_store_can_be_made",),
    ),
    Mutation(
        "message-that-is-no-text",
        "Reference, Store.save: a message is text; any other would make the name unreadable.",
        "arguments.py",
        'as_text("message", given, "text, or None for no message")',
        "given",
        ("unit/test_arguments.py::test_what_is_no_message",),
    ),
    Mutation(
        "text-with-a-surrogate",
        "Reference: UsageError names the argument whose text cannot be written as UTF-8.",
        "arguments.py",
        "        given.encode()\n",
        "        pass\n",
        (
            "unit/test_arguments.py::test_what_is_no_message",
            "unit/test_arguments_table.py::test_a_wrong_argument_is_named",
        ),
    ),
    Mutation(
        "path-that-no-file-system-takes",
        "Reference: UsageError names the argument that holds a NUL or a lone surrogate.",
        "arguments.py",
        "    if not whole:\n",
        "    if False:\n",
        ("unit/test_arguments_table.py::test_what_is_no_path",),
    ),
    Mutation(
        "user-whose-name-is-no-unicode",
        "SPEC 9: who is text in UTF-8.",
        "modelstore/home/refs.py",
        'encode(errors="backslashreplace").decode()',
        "strip()",
        ("unit/test_arguments_table.py::test_a_user_whose_name_is_no_unicode",),
    ),
    Mutation(
        "services-are-made-once",
        "CHANGELOG: placement, pins, rollouts, releases and warming are the same each time.",
        "modelstore/store.py",
        "self._services.get(name) or self._services.setdefault(name, make())",
        "make()",
        ("unit/test_admin.py::test_services_are_made_once",),
    ),
    Mutation(
        "quota-below-what-a-tier-holds",
        "Reference, TierAdmin.set: UsageError when the tier holds more than its new quota.",
        "admin/manage.py",
        'if "size" in fields and most is not None and old.role in DURABLE and not force:',
        "if False:",
        ("unit/test_admin.py::test_a_quota_below_what_a_tier_holds_is_forced",),
    ),
)

_PROCESSES = (
    Mutation(
        "what-begins-anew-in-a-child",
        "Processes: a forked child has locks, threads and connections of its own.",
        "forks.py",
        "            begin_in(owner)\n",
        "            pass\n",
        (
            "unit/test_forks.py::test_it_begins_at_once_and_again_in_each_child",
            "unit/test_forks.py::test_a_lock_that_another_thread_holds_is_free_in_the_child",
        ),
    ),
    Mutation(
        "client-library-of-a-child",
        "Processes: on S3 a forked child loads the client library again, or is refused.",
        "blobs/objects/library.py",
        "        if self._loaded_after != forks():\n            with self._lock:",
        "        if False:\n            with self._lock:",
        (
            "integration/test_processes.py::test_where_no_second_copy_can_be_loaded_the_child_is_refused[s3]",
        ),
    ),
    Mutation(
        "client-of-the-parent",
        "Processes: a forked child leaves its parent's connections alone.",
        "forks.py",
        "            leave(self._made)\n            self._made = None\n",
        "            pass\n",
        (
            "integration/test_processes.py::test_where_no_second_copy_can_be_loaded_the_child_is_refused[s3]",
        ),
    ),
    Mutation(
        "follower-of-another-process",
        "Processes: in a child, update, wait and look of a follower raise UsageError.",
        "serving/follower.py",
        "        if self._process != os.getpid():\n            raise UsageError(",
        "        if False:\n            raise UsageError(",
        ("integration/test_processes.py::test_a_follower_follows_in_its_own_process_alone[local]",),
    ),
    Mutation(
        "pickle-of-what-has-no-url",
        "Processes: a store made from objects cannot be pickled, and says so.",
        "modelstore/store.py",
        "        if self._parts.reopen is None:",
        "        if False:",
        ("unit/test_pickling.py::test_what_only_this_process_has_says_so",),
    ),
    Mutation(
        "pickle-of-a-store-in-memory",
        "Processes: a store in memory cannot be pickled, and says so.",
        "wiring/__init__.py",
        "        if not url.startswith(_IN_MEMORY):",
        "        if True:",
        ("unit/test_pickling.py::test_a_store_in_memory_says_so[memory://pickled]",),
    ),
    Mutation(
        "pickle-without-an-origin",
        "Processes: what Store.load did not open cannot be pickled, and says so.",
        "modelstore/chunks/origin.py",
        "    if origin is None:",
        "    if False:",
        ("unit/test_pickling.py::test_a_base_of_deltas_has_no_origin",),
    ),
    Mutation(
        "lease-of-many-versions",
        "SPEC 10: a process may have several leases: none grows without bound.",
        "modelstore/home/readerlease.py",
        "if len(part.versions) < MAX_VERSIONS)",
        "if True)",
        ("unit/test_modelstore_leases.py::test_many_versions_are_in_several_leases",),
    ),
    Mutation(
        "lease-of-what-nobody-reads",
        "Processes: a version is leased as long as anything that was read from it is used.",
        "modelstore/home/readerlease.py",
        "                elif self._counts[version] <= 0:",
        "                elif False:",
        (
            "unit/test_modelstore_leases.py::test_a_version_is_released_with_its_last_reader",
            "unit/test_modelstore_leases.py::test_a_model_that_nobody_has_any_more_is_released",
        ),
    ),
    Mutation(
        "lease-that-failed",
        "Processes: a lease that cannot be written is tried again within seconds.",
        "modelstore/home/readerlease.py",
        "        part.due = running_s() + self._pause_s\n",
        "        part.due = running_s() + TTL_S / 3\n",
        (
            "unit/test_modelstore_leases.py::test_a_lease_that_cannot_be_written_is_loud_and_tried_again",
        ),
    ),
    Mutation(
        "lease-of-a-child",
        "Processes: a forked child has a lease of its own for what it still reads.",
        "modelstore/home/readerlease.py",
        "        begin(self._begin)\n        self._end =",
        "        self._begin()\n        self._end =",
        (
            "unit/test_modelstore_leases.py::test_a_forked_child_has_a_lease_of_its_own_once_it_reads",
        ),
    ),
    Mutation(
        "lease-ends-with-the-process",
        "Processes: when the interpreter ends, leases are removed.",
        "modelstore/home/readerlease.py",
        "        atexit.register(_end_all)",
        "        pass",
        ("unit/test_modelstore_leases.py::test_a_process_that_closes_nothing_leaves_no_lease",),
    ),
    Mutation(
        "leases-of-killed-processes",
        "Processes: a save removes leases that ended long ago.",
        "modelstore/home/leases.py",
        "if now - mtime > 2 * TTL_S]",
        "if now - mtime > 9 * TTL_S]",
        ("unit/test_modelstore_leases.py::test_leases_of_killed_processes_are_removed_by_saves",),
    ),
    Mutation(
        "sigterm-cleans-up",
        "CLI: SIGTERM ends a command as Ctrl-C does; exit code 143.",
        "cli/__init__.py",
        "    end_on_sigterm()\n",
        "",
        ("integration/test_cli_process.py::test_sigterm_ends_a_save_as_ctrl_c_does",),
    ),
    Mutation(
        "sigterm-that-is-ignored",
        "CLI: SIGTERM that is ignored stays ignored.",
        "cli/kit/signals.py",
        "    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:",
        "    if True:",
        ("integration/test_cli_process.py::test_sigterm_that_is_ignored_stays_ignored",),
    ),
)

_RECLAIM = (
    Mutation(
        "reads-in-a-circle",
        "SPEC 12: the moves of its pack, and where these lead no further the read ends.",
        "modelstore/chunks/decode.py",
        "                tried.add(at.pack)\n",
        "",
        ("integration/test_quarantine.py::test_moves_that_lead_back_to_a_pack_end",),
    ),
    Mutation(
        "settled",
        "SPEC 11: In step 7 the writer reads the highest condemned list once more.",
        "modelstore/saving/writer.py",
        "            condemned = self._home.condemned.among(relied_on)\n",
        "            condemned = set[bytes]()\n",
        (
            "integration/test_condemned.py::test_a_save_whose_packs_were_collected_before_it_was_published",
            "integration/test_condemned.py::test_a_kept_layout_whose_pack_is_condemned_when_the_version_is_there",
            "integration/test_condemned.py::test_deltas_whose_base_is_condemned_when_the_version_is_there",
            "integration/test_condemned.py::test_a_patch_and_a_fold_look_again",
        ),
    ),
    Mutation(
        "settled-until-clean",
        "SPEC 11: and the list is looked at once more, until no pack is.",
        "modelstore/saving/writer.py",
        "            self._publish(self._digest)\n        raise",
        "            self._publish(self._digest)\n            return\n        raise",
        ("integration/test_condemned.py::test_packs_that_are_collected_again_and_again",),
    ),
    Mutation(
        "settled-after-an-error",
        "SPEC 11: step 7: the entry may be there although its answer was lost.",
        "modelstore/saving/transaction.py",
        "                    with suppress(TierstoreError):\n"
        "                        writer.settle()\n"
        "                    raise",
        "                    raise",
        ("integration/test_condemned.py::test_an_entry_whose_answer_was_lost_is_looked_after",),
    ),
    Mutation(
        "rebase-leads-first",
        "SPEC 11: moves from the packs of the deltas into the new ones, before the layout.",
        "modelstore/care/rebase.py",
        "        for pack, packs in into.items():\n            self._healing.move(pack, packs)",
        "        del into",
        (
            "integration/test_condemned.py::test_the_new_packs_of_a_rebase_are_led_to_before_its_layout",
        ),
    ),
    Mutation(
        "rebase-leads-back",
        "SPEC 11: and moves from the new packs to those of the deltas and of their bases.",
        "modelstore/care/rebase.py",
        "        self._lead_back(expensive)\n",
        "",
        (
            "integration/test_condemned.py::"
            "test_a_rebase_that_slept_until_its_packs_were_collected_and_died",
        ),
    ),
    Mutation(
        "bases-found-by-moves",
        "SPEC 8: The base of a delta that a move leads to is found by the moves, too.",
        "modelstore/chunks/decode.py",
        "self._table.find(digest) or self._pool.moves.find(digest)",
        "self._table.find(digest)",
        (
            "integration/test_condemned.py::"
            "test_a_rebase_that_slept_until_its_packs_were_collected_and_died",
        ),
    ),
    Mutation(
        "rebase-looks-again",
        "SPEC 11: A rebase looks at the list as in step 7.",
        "modelstore/care/rebase.py",
        "            condemned = self._home.condemned.among(relied_on)\n",
        "            condemned = set[bytes]()\n",
        (
            "integration/test_condemned.py::test_a_rebase_whose_packs_are_collected_when_its_layout_is_there",
        ),
    ),
    Mutation(
        "condemned-for-good",
        "SPEC 10: Condemned is for good: a segment stays in the lists.",
        "modelstore/home/condemned.py",
        "segments=[*before, new],",
        "segments=[new],",
        (
            "integration/test_condemned.py::test_the_highest_list_says_all_that_holds",
            "integration/test_condemned.py::test_a_collector_that_comes_second_builds_on_the_first",
        ),
    ),
    Mutation(
        "condemned-by-the-highest",
        "SPEC 10: A collector MUST read the highest one again after its own put.",
        "modelstore/home/condemned.py",
        "                if new in newest.segments:\n",
        "                if True:\n",
        (
            "integration/test_condemned.py::"
            "test_a_collector_whose_number_was_given_out_and_is_free_again_takes_a_higher_one",
        ),
    ),
    Mutation(
        "condemned-highest-list",
        "SPEC 10: The highest list holds.",
        "modelstore/home/condemned.py",
        "number = max(number, int(match[1]))",
        "number = number or int(match[1])",
        ("integration/test_condemned.py::test_the_highest_list_says_all_that_holds",),
    ),
    Mutation(
        "condemned-list-damaged",
        "SPEC 10: Where a list is damaged, all segments that are there hold.",
        "modelstore/home/condemned.py",
        "            return {*wanted} & self._packs_in(self._segments_there())",
        "            return set()",
        (
            "integration/test_condemned.py::test_a_damaged_list_counts_for_all_that_was_ever_condemned",
        ),
    ),
    Mutation(
        "condemned-early-lists",
        "SPEC 10: gc/<run> with another name is an early form that is read.",
        "modelstore/home/condemned.py",
        "                early |= self._early(info.key)",
        "                pass",
        ("integration/test_condemned.py::test_early_lists_hold_and_other_objects_are_ignored",),
    ),
    Mutation(
        "condemned-unknown",
        "SPEC 10: a segment that cannot be read condemns all that was there before.",
        "modelstore/home/confirm.py",
        "        return set(sizes)\n\n    def",
        "        condemned = set()\n\n    def",
        (
            "integration/test_condemned.py::test_what_cannot_be_read_costs_duplicates_but_stops_no_save",
        ),
    ),
    Mutation(
        "condemned-filter",
        "SPEC 10: of a pack id the bits are set.",
        "format/condemned.py",
        "            found[bit >> 3] |= 1 << (bit & 7)",
        "            found[bit >> 3] |= 1 << (bit & 3)",
        (
            "unit/test_format_condemned.py::test_the_filter_has_every_pack",
            "unit/test_format_condemned.py::test_the_bits_of_the_filter_are_those_of_the_specification",
        ),
    ),
    Mutation(
        "condemned-list-number",
        "SPEC 10: gc/<seq>: a list says its own number.",
        "format/condemned.py",
        "    if found.seq != seq:",
        "    if False:",
        ("unit/test_format_condemned.py::test_a_list_that_breaks_the_format_is_damaged",),
    ),
    Mutation(
        "second-look",
        "SPEC 12: when a pack is gone and no move leads on, the layout is read again.",
        "modelstore/chunks/moves.py",
        "                self._newer = self._look_again()",
        "                pass",
        (
            "integration/test_condemned.py::test_a_reader_looks_at_the_layout_again_when_its_packs_are_gone",
        ),
    ),
    Mutation(
        "mover-plans-no-condemned",
        "SPEC 13: A mover leaves condemned packs where they are.",
        "modelstore/placing/snapshot.py",
        "        if pack not in condemned\n",
        "",
        ("integration/test_condemned.py::test_condemned_packs_are_not_planned_for",),
    ),
    Mutation(
        "mover-condemned-since",
        "SPEC 13: A mover leaves condemned packs where they are.",
        "tiers/durable/mover.py",
        "            if self._is_condemned(move.pack):",
        "            if False:",
        (
            "integration/test_mover.py::test_a_pack_that_was_condemned_since_the_plan_is_left_where_it_is",
        ),
    ),
    Mutation(
        "mover-puts-no-condemned-back",
        "SPEC 13: A mover puts no condemned pack back.",
        "tiers/durable/mover.py",
        "            if _size(target, key) is None and not self._is_condemned(pack):",
        "            if _size(target, key) is None:",
        ("integration/test_mover.py::test_a_collected_pack_is_not_put_back",),
    ),
)

MUTATIONS = (
    *_FORMAT, *_DURABILITY, *_QUARANTINE, *_TIERS, *_MOVER, *_HOT, *_NAMES, *_GATEWAY,
    *_ARCHITECTURE, *_API, *_PROCESSES, *_RECLAIM,
)  # fmt: skip
