/* Asked for by BCC, used by nothing here. */
