-- Remember this claim for a repetition, and return the reply.
--
-- Commands  hget
-- Reads     before buried claimed first_token known now remembered reply resends results short
-- Reads     wait wants_total

for _, text in ipairs(buried) do
  text = digits(#text) .. ':' .. text
  reply[#reply + 1] = text
  remembered[#remembered + 1] = text
end
for _, schedule in ipairs(short) do reply[#reply + 1] = digits(#schedule) .. ':' .. schedule end
remember(table.concat(
  {results, before, digits(resends), digits(first_token), digits(claimed),
   table.concat(remembered)}, ';'))
local posted = ''
if wants_total then
  posted = string.match(redis.call('HGET', SYS, 'n:posted') or '0', '^%d+$') or ''
end
reply[1] = table.concat(
  {now, digits(wait), known and '1' or '0', results, now, before, posted, digits(claimed),
   digits(#buried / 2), digits(#short)}, ';') .. '|'
return table.concat(reply)
